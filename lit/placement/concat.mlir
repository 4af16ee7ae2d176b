// RUN: effc-opt %s --emit kernels --target avx2 | filecheck %s

// The parts of a concatenation are computed in their place of the result; nothing is copied.
// CHECK: program(), arena of 0 bytes
// CHECK: output 0: f32[5] strides (1)
// CHECK-NEXT: call 0: {{.*}}output 0
// CHECK-NEXT: call 1: {{.*}}output 0
// CHECK-NOT: call 2
#id = affine_map<(d0) -> (d0)>
func.func @main(%x: tensor<2xf32> {effc.sizes = ["2"], effc.strides = ["1"]}, %y: tensor<3xf32> {effc.sizes = ["3"], effc.strides = ["1"]})
    -> (tensor<5xf32> {effc.strides = ["1"]}) {
  %e = tensor.empty() : tensor<2xf32>
  %f = tensor.empty() : tensor<3xf32>
  %a = linalg.generic {indexing_maps = [#id, #id], iterator_types = ["parallel"]} ins(%x : tensor<2xf32>) outs(%e : tensor<2xf32>) {
  ^bb0(%p: f32, %o: f32):
    %0 = math.exp %p : f32
    linalg.yield %0 : f32
  } -> tensor<2xf32>
  %b = linalg.generic {indexing_maps = [#id, #id], iterator_types = ["parallel"]} ins(%y : tensor<3xf32>) outs(%f : tensor<3xf32>) {
  ^bb0(%p: f32, %o: f32):
    %0 = arith.negf %p : f32
    linalg.yield %0 : f32
  } -> tensor<3xf32>
  %c = tensor.concat dim(0) %a, %b : (tensor<2xf32>, tensor<3xf32>) -> tensor<5xf32>
  return %c : tensor<5xf32>
}
