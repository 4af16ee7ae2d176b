// RUN: effc-opt %s --emit kernels --target avx2 | filecheck %s

// A result that is written into an argument is computed there, in place.
// CHECK: output 0: f32[4] strides (1) written to input 0
// CHECK: call 0
// CHECK-NOT: call 1
#id = affine_map<(d0) -> (d0)>
func.func @main(%x: tensor<4xf32> {effc.sizes = ["4"], effc.strides = ["1"]}) -> (tensor<4xf32> {effc.strides = ["1"], effc.mutates = 0 : i64}) {
  %e = tensor.empty() : tensor<4xf32>
  %a = linalg.generic {indexing_maps = [#id, #id], iterator_types = ["parallel"]} ins(%x : tensor<4xf32>) outs(%e : tensor<4xf32>) {
  ^bb0(%p: f32, %o: f32):
    %0 = arith.addf %p, %p : f32
    linalg.yield %0 : f32
  } -> tensor<4xf32>
  return %a : tensor<4xf32>
}
