// RUN: effc-opt %s --emit kernels --target avx512 | filecheck %s

// A weight that is looked up in a codebook stays codes of 2 bits; what is prepared checks that the codebook is still this one.
// CHECK: derived {{[0-9]+}}: pack_codes of input 2
// CHECK: kernel k0: contraction, d0: 4, d1: 32, reduction d2: 8
// CHECK-NEXT: operands: read f32, packed i8, read f32, write f32
// CHECK: decode {{v[0-9]+}} bits=2 codebook={{.}}-1.0, -0.5, 0.25, 1.0]
// CHECK: prepare
// CHECK: check {{v[0-9]+}} message=book is another codebook than when the model was compiled
func.func @main(%x: tensor<4x8xf32> {effc.sizes = ["4", "8"], effc.strides = ["8", "1"]},
                %b: tensor<4xf32> {effc.sizes = ["4"], effc.strides = ["1"], effc.param = "book", effc.values = array<f64: -1.0, -0.5, 0.25, 1.0>},
                %w: tensor<32x8xi8> {effc.sizes = ["32", "8"], effc.strides = ["8", "1"], effc.param = "weight", effc.range = array<i64: 0, 3>},
                %s: tensor<32xf32> {effc.sizes = ["32"], effc.strides = ["1"], effc.param = "scale"})
    -> (tensor<4x32xf32> {effc.strides = ["32", "1"]}) {
  %zero = arith.constant 0.0 : f32
  %y0 = tensor.empty() : tensor<32x8xf32>
  %y = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}
      ins(%w : tensor<32x8xi8>) outs(%y0 : tensor<32x8xf32>) {
  ^bb0(%p: i8, %o: f32):
    %0 = arith.extui %p : i8 to i64
    %1 = arith.index_cast %0 : i64 to index
    %2 = tensor.extract %b[%1] : tensor<4xf32>
    linalg.yield %2 : f32
  } -> tensor<32x8xf32>
  %z = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0)>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}
      ins(%y, %s : tensor<32x8xf32>, tensor<32xf32>) outs(%y0 : tensor<32x8xf32>) {
  ^bb0(%p: f32, %f: f32, %o: f32):
    %0 = arith.mulf %p, %f : f32
    linalg.yield %0 : f32
  } -> tensor<32x8xf32>
  %r0 = tensor.empty() : tensor<4x32xf32>
  %r1 = linalg.fill ins(%zero : f32) outs(%r0 : tensor<4x32xf32>) -> tensor<4x32xf32>
  %r = linalg.contract indexing_maps = [affine_map<(d0, d1, d2) -> (d0, d2)>, affine_map<(d0, d1, d2) -> (d1, d2)>, affine_map<(d0, d1, d2) -> (d0, d1)>]
      ins(%x, %z : tensor<4x8xf32>, tensor<32x8xf32>) outs(%r1 : tensor<4x32xf32>) -> tensor<4x32xf32>
  return %r : tensor<4x32xf32>
}
