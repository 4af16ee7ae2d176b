// RUN: effc-opt %s --emit kernels --target avx512 | filecheck %s

// Unsigned activations with a zero point, signed weights with a scale a channel: the sum is of bytes in i32, less the zero point times
// the weights' sums, which are prepared with the scales; then one multiplication.
// CHECK-LABEL: program(), arena of 0 bytes
// CHECK: derived {{[0-9]+}}: pack_panels of input 1
// CHECK: call 0: k0
// CHECK-NOT: call 1
// CHECK: kernel k0: contraction, d0: 4, d1: 32, reduction d2: 8
// CHECK-NEXT: operands: read i8, packed i8, read i32, read f32, write f32
// CHECK-NEXT: v0 = load 0[8*d0 + d2] : i8
// CHECK-NEXT: v1 = arith.extui v0 : i32
// CHECK-NEXT: v2 = load 1[8*d1 + d2] : i8
// CHECK-NEXT: v3 = arith.extsi v2 : i32
// CHECK-NEXT: v4 = contract v1 v3 : i32
// CHECK-NEXT: v5 = load 2[d1] : i32
// CHECK-NEXT: v6 = arith.subi v4 v5 : i32
// CHECK-NEXT: v7 = arith.sitofp v6 : f32
// CHECK-NEXT: v8 = load 3[d1] : f32
// CHECK-NEXT: v9 = arith.mulf v7 v8 : f32
// CHECK-NEXT: store v9 to 4[32*d0 + d1]
// CHECK: prepare: program
func.func @main(%q: tensor<4x8xi8> {effc.sizes = ["4", "8"], effc.strides = ["8", "1"]},
                %w: tensor<32x8xi8> {effc.sizes = ["32", "8"], effc.strides = ["8", "1"], effc.param = "weight"},
                %s: tensor<32xf32> {effc.sizes = ["32"], effc.strides = ["1"], effc.param = "scale"})
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
  %y0 = tensor.empty() : tensor<32x8xf32>
  %y = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0)>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}
      ins(%w, %s : tensor<32x8xi8>, tensor<32xf32>) outs(%y0 : tensor<32x8xf32>) {
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
