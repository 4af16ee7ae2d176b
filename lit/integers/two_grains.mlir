// RUN: effc-opt %s --emit kernels --target avx512 | filecheck %s

// A weight of codes times integers of their groups, and one float a channel: the former product is made once, in bytes, which are packed
// and summed in i32 over all groups. Rows that are not symmetric, as these, and many rows have such bytes; few ones read the codes
// (two_grains_few_rows.mlir).
// CHECK-LABEL: program(), arena of 0 bytes
// CHECK: pack_panels of prepared 0
// CHECK: call 0: k0
// CHECK-NOT: call 1
// CHECK: kernel k0: contraction, d0: 4, d1: 32, reduction d2: 8
// CHECK-NEXT: operands: read i8, packed i8
// CHECK: contract {{.*}} : i32
// CHECK: prepare: program
// CHECK: kernel {{.*}}: loops, d0: 32, d1: 2, d2: 4
// CHECK-NEXT: operands: read i8, read i8, write i8
// CHECK: arith.muli {{.*}} : i8
func.func @main(%q: tensor<4x8xi8> {effc.sizes = ["4", "8"], effc.strides = ["8", "1"]},
                %w: tensor<32x8xi8> {effc.sizes = ["32", "8"], effc.strides = ["8", "1"], effc.param = "weight", effc.range = array<i64: -8, 7>},
                %g: tensor<32x2xi8> {effc.sizes = ["32", "2"], effc.strides = ["2", "1"], effc.param = "groups"},
                %s: tensor<32xf32> {effc.sizes = ["32"], effc.strides = ["1"], effc.param = "channels"})
    -> (tensor<4x32xf32> {effc.strides = ["32", "1"]}) {
  %zero = arith.constant 0.0 : f32
  %point = arith.constant 100.0 : f32
  %scale = arith.constant 0.5 : f32
  %x0 = tensor.empty() : tensor<4x8xf32>
  %x = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}
      ins(%q : tensor<4x8xi8>) outs(%x0 : tensor<4x8xf32>) {
  ^bb0(%p: i8, %o: f32):
    %0 = arith.uitofp %p : i8 to f32
    %1 = arith.subf %0, %point : f32
    %2 = arith.mulf %1, %scale : f32
    linalg.yield %2 : f32
  } -> tensor<4x8xf32>
  %v = tensor.expand_shape %w [[0], [1, 2]] output_shape [32, 2, 4] : tensor<32x8xi8> into tensor<32x2x4xi8>
  %b0 = tensor.empty() : tensor<32x2x4xi8>
  %b1 = linalg.generic {indexing_maps = [affine_map<(d0, d1, d2) -> (d0, d1, d2)>, affine_map<(d0, d1, d2) -> (d0, d1)>, affine_map<(d0, d1, d2) -> (d0, d1, d2)>], iterator_types = ["parallel", "parallel", "parallel"]}
      ins(%v, %g : tensor<32x2x4xi8>, tensor<32x2xi8>) outs(%b0 : tensor<32x2x4xi8>) {
  ^bb0(%p: i8, %f: i8, %o: i8):
    %0 = arith.muli %p, %f : i8
    linalg.yield %0 : i8
  } -> tensor<32x2x4xi8>
  %b = tensor.collapse_shape %b1 [[0], [1, 2]] : tensor<32x2x4xi8> into tensor<32x8xi8>
  %y0 = tensor.empty() : tensor<32x8xf32>
  %y = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0)>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}
      ins(%b, %s : tensor<32x8xi8>, tensor<32xf32>) outs(%y0 : tensor<32x8xf32>) {
  ^bb0(%p: i8, %f: f32, %o: f32):
    %0 = arith.sitofp %p : i8 to f32
    %1 = arith.mulf %0, %f : f32
    linalg.yield %1 : f32
  } -> tensor<32x8xf32>
  %r0 = tensor.empty() : tensor<4x32xf32>
  %r1 = linalg.fill ins(%zero : f32) outs(%r0 : tensor<4x32xf32>) -> tensor<4x32xf32>
  %r = linalg.contract indexing_maps = [affine_map<(d0, d1, d2) -> (d0, d2)>, affine_map<(d0, d1, d2) -> (d1, d2)>, affine_map<(d0, d1, d2) -> (d0, d1)>]
      ins(%x, %y : tensor<4x8xf32>, tensor<32x8xf32>) outs(%r1 : tensor<4x32xf32>) -> tensor<4x32xf32>
  return %r : tensor<4x32xf32>
}
