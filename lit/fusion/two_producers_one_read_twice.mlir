// RUN: effc-opt %s --emit kernels --target avx2 | filecheck %s

// A factor that is a result too is computed once, by a kernel of its own, if the other one does not depend on it.
// CHECK: call 0: {{.*}}"tanh"
// CHECK: call 1: {{.*}}"exp+mulf"
// CHECK-NOT: call 2
#all = affine_map<(d0, d1) -> (d0, d1)>
func.func @main(%x: tensor<7x13xf32> {effc.sizes = ["7", "13"], effc.strides = ["13", "1"]},
                %y: tensor<7x13xf32> {effc.sizes = ["7", "13"], effc.strides = ["13", "1"]})
    -> (tensor<7x13xf32> {effc.strides = ["13", "1"]}, tensor<7x13xf32> {effc.strides = ["13", "1"]}) {
  %e = tensor.empty() : tensor<7x13xf32>
  %s = linalg.generic {indexing_maps = [#all, #all], iterator_types = ["parallel", "parallel"]}
      ins(%x : tensor<7x13xf32>) outs(%e : tensor<7x13xf32>) {
  ^bb0(%p: f32, %o: f32):
    %0 = math.tanh %p : f32
    linalg.yield %0 : f32
  } -> tensor<7x13xf32>
  %t = linalg.generic {indexing_maps = [#all, #all], iterator_types = ["parallel", "parallel"]}
      ins(%y : tensor<7x13xf32>) outs(%e : tensor<7x13xf32>) {
  ^bb0(%p: f32, %o: f32):
    %0 = math.exp %p : f32
    linalg.yield %0 : f32
  } -> tensor<7x13xf32>
  %r = linalg.generic {indexing_maps = [#all, #all, #all], iterator_types = ["parallel", "parallel"]}
      ins(%s, %t : tensor<7x13xf32>, tensor<7x13xf32>) outs(%e : tensor<7x13xf32>) {
  ^bb0(%p: f32, %q: f32, %o: f32):
    %0 = arith.mulf %p, %q : f32
    linalg.yield %0 : f32
  } -> tensor<7x13xf32>
  return %r, %s : tensor<7x13xf32>, tensor<7x13xf32>
}
