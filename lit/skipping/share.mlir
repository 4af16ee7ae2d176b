// RUN: effc-opt %s --emit kernels --target avx512 | filecheck %s
// RUN: sed s/0.7/0.02/ %s | effc-opt - --emit kernels --target avx512 | filecheck %s --check-prefix=FEW
// RUN: sed s/0.7/1.5/ %s > %t.wrong
// RUN: not effc-opt %t.wrong --emit kernels --target avx512 2>&1 | filecheck %s --check-prefix=WRONG
// RUN: sed 's/\(select .*\), .zero, \(.*\) :/\1, \2, \2 :/' %s | effc-opt - --emit kernels --target avx512 | filecheck %s --check-prefix=NONE
// RUN: sed 's/, effc.share = 0.7 : f64//' %s | effc-opt - --emit kernels --target avx512 | filecheck %s --check-prefix=UNKNOWN

// A threshold says which share of what is compared with it becomes zeros, and the choice of the kernel counts with it.
// CHECK: kernel k1: contraction, {{.*}}, zeros=[0], share=0.7, schedule skip=inputs

// So few are left out that a list of them would cost more.
// FEW: share=0.02
// FEW-NOT: skip=

// WRONG: effc.share of the parameter threshold: 1.5 is not between 0 and 1

// No kernel but one that may leave out something has a share.
// NONE-NOT: share=

// Half are expected where nothing is said.
// UNKNOWN-NOT: share=
// UNKNOWN: skip=inputs
func.func @main(%x: tensor<1x256xf32> {effc.sizes = ["1", "256"], effc.strides = ["256", "1"]},
                %t: tensor<f32> {effc.sizes = [], effc.strides = [], effc.param = "threshold", effc.share = 0.7 : f64},
                %w: tensor<320x256xf32> {effc.sizes = ["320", "256"], effc.strides = ["256", "1"], effc.param = "weight"})
    -> (tensor<1x320xf32> {effc.strides = ["320", "1"]}) {
  %zero = arith.constant 0.0 : f32
  %h0 = tensor.empty() : tensor<1x256xf32>
  %h = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> ()>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}
      ins(%x, %t : tensor<1x256xf32>, tensor<f32>) outs(%h0 : tensor<1x256xf32>) {
  ^bb0(%p: f32, %limit: f32, %o: f32):
    %0 = math.absf %p : f32
    %1 = arith.cmpf ole, %0, %limit : f32
    %2 = arith.select %1, %zero, %p : f32
    linalg.yield %2 : f32
  } -> tensor<1x256xf32>
  %r0 = tensor.empty() : tensor<1x320xf32>
  %r1 = linalg.fill ins(%zero : f32) outs(%r0 : tensor<1x320xf32>) -> tensor<1x320xf32>
  %r = linalg.contract indexing_maps = [affine_map<(d0, d1, d2) -> (d0, d2)>, affine_map<(d0, d1, d2) -> (d1, d2)>, affine_map<(d0, d1, d2) -> (d0, d1)>]
      ins(%h, %w : tensor<1x256xf32>, tensor<320x256xf32>) outs(%r1 : tensor<1x320xf32>) -> tensor<1x320xf32>
  return %r : tensor<1x320xf32>
}
