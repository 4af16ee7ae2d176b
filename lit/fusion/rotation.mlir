// RUN: effc-opt %s --emit kernels --target avx2 | filecheck %s

// A rotary position embedding: a kernel for each half of the result, and nothing is stored between.
// CHECK: program(), arena of 0 bytes
// CHECK: call 0: {{.*}}output 0)
// CHECK: call 1: {{.*}}output 0 + 128)
// CHECK-NOT: call 2
// CHECK: kernel k0: loops, d0: 5, d1: 32
#all = affine_map<(d0, d1) -> (d0, d1)>
func.func @main(%x: tensor<5x64xf32> {effc.sizes = ["5", "64"], effc.strides = ["64", "1"]},
                %cos: tensor<5x64xf32> {effc.sizes = ["5", "64"], effc.strides = ["64", "1"]},
                %sin: tensor<5x64xf32> {effc.sizes = ["5", "64"], effc.strides = ["64", "1"]})
    -> (tensor<5x64xf32> {effc.strides = ["64", "1"]}) {
  %h = tensor.empty() : tensor<5x32xf32>
  %e = tensor.empty() : tensor<5x64xf32>
  %a = tensor.extract_slice %x[0, 32] [5, 32] [1, 1] : tensor<5x64xf32> to tensor<5x32xf32>
  %b = tensor.extract_slice %x[0, 0] [5, 32] [1, 1] : tensor<5x64xf32> to tensor<5x32xf32>
  %n = linalg.generic {indexing_maps = [#all, #all], iterator_types = ["parallel", "parallel"]}
      ins(%a : tensor<5x32xf32>) outs(%h : tensor<5x32xf32>) {
  ^bb0(%p: f32, %o: f32):
    %0 = arith.negf %p : f32
    linalg.yield %0 : f32
  } -> tensor<5x32xf32>
  %c = tensor.concat dim(1) %n, %b : (tensor<5x32xf32>, tensor<5x32xf32>) -> tensor<5x64xf32>
  %s = linalg.generic {indexing_maps = [#all, #all, #all], iterator_types = ["parallel", "parallel"]}
      ins(%c, %sin : tensor<5x64xf32>, tensor<5x64xf32>) outs(%e : tensor<5x64xf32>) {
  ^bb0(%p: f32, %q: f32, %o: f32):
    %0 = arith.mulf %p, %q : f32
    linalg.yield %0 : f32
  } -> tensor<5x64xf32>
  %t = linalg.generic {indexing_maps = [#all, #all, #all], iterator_types = ["parallel", "parallel"]}
      ins(%x, %cos : tensor<5x64xf32>, tensor<5x64xf32>) outs(%e : tensor<5x64xf32>) {
  ^bb0(%p: f32, %q: f32, %o: f32):
    %0 = arith.mulf %p, %q : f32
    linalg.yield %0 : f32
  } -> tensor<5x64xf32>
  %r = linalg.generic {indexing_maps = [#all, #all, #all], iterator_types = ["parallel", "parallel"]}
      ins(%t, %s : tensor<5x64xf32>, tensor<5x64xf32>) outs(%e : tensor<5x64xf32>) {
  ^bb0(%p: f32, %q: f32, %o: f32):
    %0 = arith.addf %p, %q : f32
    linalg.yield %0 : f32
  } -> tensor<5x64xf32>
  return %r : tensor<5x64xf32>
}
