// RUN: effc-opt %s --emit kernels --target avx2 | filecheck %s

// A chain of pointwise ops, one of which broadcasts a row, is one kernel: each input is read once, nothing is stored between.
// CHECK: program(), arena of 0 bytes
// CHECK: call 0: k0
// CHECK-NOT: call 1
// CHECK: kernel k0: loops, d0: 7, d1: 13
// CHECK-NEXT: operands: read f32, read f32, write f32
// CHECK-NEXT: v0 = load 0[13*d0 + d1] : f32
// CHECK-NEXT: v1 = load 1[d1] : f32
// CHECK-NEXT: v2 = arith.addf v0 v1 : f32
// CHECK-NEXT: v3 = math.tanh v2 : f32
// CHECK-NEXT: store v3 to 2[13*d0 + d1]
#row = affine_map<(d0, d1) -> (d1)>
#all = affine_map<(d0, d1) -> (d0, d1)>
func.func @main(%x: tensor<7x13xf32> {effc.sizes = ["7", "13"], effc.strides = ["13", "1"]},
                %b: tensor<13xf32> {effc.sizes = ["13"], effc.strides = ["1"]})
    -> (tensor<7x13xf32> {effc.strides = ["13", "1"]}) {
  %e = tensor.empty() : tensor<7x13xf32>
  %s = linalg.generic {indexing_maps = [#all, #row, #all], iterator_types = ["parallel", "parallel"]}
      ins(%x, %b : tensor<7x13xf32>, tensor<13xf32>) outs(%e : tensor<7x13xf32>) {
  ^bb0(%p: f32, %q: f32, %o: f32):
    %0 = arith.addf %p, %q : f32
    linalg.yield %0 : f32
  } -> tensor<7x13xf32>
  %t = linalg.generic {indexing_maps = [#all, #all], iterator_types = ["parallel", "parallel"]}
      ins(%s : tensor<7x13xf32>) outs(%e : tensor<7x13xf32>) {
  ^bb0(%p: f32, %o: f32):
    %0 = math.tanh %p : f32
    linalg.yield %0 : f32
  } -> tensor<7x13xf32>
  return %t : tensor<7x13xf32>
}
