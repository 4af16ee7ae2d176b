// RUN: effc-opt %s --emit kernels --target avx2 | filecheck %s
// RUN: effc-opt %s --emit code --target avx2 | filecheck %s --check-prefix=CODE

// A matmul and the ReLU after it are one kernel, under the user's line; the program needs no memory between them.
// CHECK: program(), arena of 0 bytes
// CHECK-NEXT: input 0: f32[3, 8] strides (8, 1)
// CHECK-NEXT: input 1: f32[5, 8] strides (8, 1) param weight
// CHECK: output 0: f32[3, 5] strides (5, 1)
// CHECK-NEXT: call 0: k0 "{{.*}}" at model.py:3
// CHECK-NOT: call 1
// CHECK: kernel k0: contraction, d0: 3, d1: 5, reduction d2: 8
// CHECK: contract
// CHECK: arith.maximumf
// CHECK-NEXT: store {{.*}} to 2[5*d0 + d1]

// CODE: func @k_{{[0-9a-f]+}}(
func.func @main(%x: tensor<3x8xf32> {effc.sizes = ["3","8"], effc.strides = ["8","1"]}, %w: tensor<5x8xf32> {effc.param = "weight", effc.sizes = ["5","8"], effc.strides = ["8","1"]}) -> (tensor<3x5xf32> {effc.strides = ["5","1"]}) {
  %zero = arith.constant 0.0 : f32
  %e = tensor.empty() : tensor<3x5xf32>
  %i = linalg.fill ins(%zero : f32) outs(%e : tensor<3x5xf32>) -> tensor<3x5xf32>
  %m = linalg.contract indexing_maps = [affine_map<(m, n, k) -> (m, k)>, affine_map<(m, n, k) -> (n, k)>, affine_map<(m, n, k) -> (m, n)>]
    ins(%x, %w : tensor<3x8xf32>, tensor<5x8xf32>) outs(%i : tensor<3x5xf32>) -> tensor<3x5xf32> loc("model.py":3:0)
  %r = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}
    ins(%m : tensor<3x5xf32>) outs(%e : tensor<3x5xf32>) {
  ^bb0(%a: f32, %o: f32):
    %s = arith.maximumf %a, %zero : f32
    linalg.yield %s : f32
  } -> tensor<3x5xf32> loc("model.py":4:0)
  return %r : tensor<3x5xf32>
}
