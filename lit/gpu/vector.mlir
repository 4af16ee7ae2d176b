// RUN: effc-opt %s --emit code --target sm_90 | filecheck %s
// RUN: effc-opt %s --emit code --target sm_89 | filecheck %s

// One row meets a matrix: no tensor cores, but sums along the rows of the weight.
// CHECK: "tt.func"
// CHECK-NOT: "tt.dot"
// CHECK: arith.mulf
// CHECK: "tt.reduce"
func.func @main(%x: tensor<1x64xf32> {effc.sizes = ["1", "64"], effc.strides = ["64", "1"]},
                %w: tensor<48x64xf32> {effc.param = "weight", effc.sizes = ["48", "64"], effc.strides = ["64", "1"]})
    -> (tensor<1x48xf32> {effc.strides = ["48", "1"]}) {
  %zero = arith.constant 0.0 : f32
  %e = tensor.empty() : tensor<1x48xf32>
  %i = linalg.fill ins(%zero : f32) outs(%e : tensor<1x48xf32>) -> tensor<1x48xf32>
  %m = linalg.contract indexing_maps = [affine_map<(m, n, k) -> (m, k)>, affine_map<(m, n, k) -> (n, k)>, affine_map<(m, n, k) -> (m, n)>]
    ins(%x, %w : tensor<1x64xf32>, tensor<48x64xf32>) outs(%i : tensor<1x48xf32>) -> tensor<1x48xf32>
  return %m : tensor<1x48xf32>
}
