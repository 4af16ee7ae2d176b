// RUN: effc-opt %s --emit kernels --target avx512 | filecheck %s

// A scale of the activations that varies along the sum cannot be taken out of it: only the weights stay codes.
// CHECK: note: {{.*}}: a product of two dequantized factors is summed in floats: a scale or zero point varies along the sum
// CHECK: kernel {{.*}}: contraction, d0: 4, d1: 32, reduction d2: 8
// CHECK-NEXT: operands: read f32, packed i8, read f32, write f32
// CHECK: arith.sitofp {{.*}} : f32
// CHECK-NEXT: contract {{.*}} : f32
// CHECK-NOT: contract {{.*}} : i32
func.func @main(%q: tensor<4x8xi8> {effc.sizes = ["4", "8"], effc.strides = ["8", "1"]},
                %w: tensor<32x8xi8> {effc.sizes = ["32", "8"], effc.strides = ["8", "1"], effc.param = "weight"},
                %s: tensor<32xf32> {effc.sizes = ["32"], effc.strides = ["1"], effc.param = "scale"},
                %t: tensor<8xf32> {effc.sizes = ["8"], effc.strides = ["1"], effc.param = "along"})
    -> (tensor<4x32xf32> {effc.strides = ["32", "1"]}) {
  %zero = arith.constant 0.0 : f32
  %point = arith.constant 100.0 : f32
  %x0 = tensor.empty() : tensor<4x8xf32>
  %x = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d1)>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}
      ins(%q, %t : tensor<4x8xi8>, tensor<8xf32>) outs(%x0 : tensor<4x8xf32>) {
  ^bb0(%p: i8, %f: f32, %o: f32):
    %0 = arith.uitofp %p : i8 to f32
    %1 = arith.subf %0, %point : f32
    %2 = arith.mulf %1, %f : f32
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
