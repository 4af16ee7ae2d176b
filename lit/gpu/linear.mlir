// RUN: effc-opt %s --emit kernels --target sm_90 | filecheck %s
// RUN: effc-opt %s --emit code --target sm_90 | filecheck %s --check-prefix=CODE

// A matmul and the ReLU after it are one kernel, as on a CPU; the weight is read where it lies, nothing is packed.
// CHECK: call 0: k0 "{{.*}}" at model.py:3 (input 0, input 1, output 0)
// CHECK-NOT: call 1
// CHECK: operands: read f32, read f32, write f32

// The sum has one step, so there is no loop. Factors of float32 are multiplied exactly (inputPrecision 2), and the borders are masked.
// CODE: "tt.func"
// CODE: "tt.load"(%{{[0-9]+}}, %{{[0-9]+}}, %{{[0-9]+}})
// CODE: "tt.load"
// CODE: "tt.dot"{{.*}}inputPrecision = 2 : i32
// CODE: arith.maximumf
// CODE: "tt.store"(%{{[0-9]+}}, %{{[0-9]+}}, %{{[0-9]+}})
// CODE-NOT: scf.for
// CODE: tt.divisibility = 16 : i32
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
