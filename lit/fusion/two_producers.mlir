// RUN: effc-opt %s --emit kernels --target avx2 | filecheck %s

// Both factors of a product are computed where it is: one kernel, though neither reads the other.
// CHECK: program(), arena of 0 bytes
// CHECK: call 0: k0
// CHECK-NOT: call 1
// CHECK: kernel k0: loops, d0: 7, d1: 13
// CHECK-NEXT: operands: read f32, read f32, write f32
// CHECK: math.tanh
// CHECK: math.exp
// CHECK: arith.mulf
#all = affine_map<(d0, d1) -> (d0, d1)>
func.func @main(%x: tensor<7x13xf32> {effc.sizes = ["7", "13"], effc.strides = ["13", "1"]},
                %y: tensor<7x13xf32> {effc.sizes = ["7", "13"], effc.strides = ["13", "1"]})
    -> (tensor<7x13xf32> {effc.strides = ["13", "1"]}) {
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
  return %r : tensor<7x13xf32>
}
