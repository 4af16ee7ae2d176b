// RUN: effc-opt %s --emit kernels --target avx512 | filecheck %s

// Too few rows to share out.
// CHECK-NOT: block
// CHECK: kernel k1: contraction
func.func @main(%x: tensor<16x64xf32> {effc.sizes = ["16", "64"], effc.strides = ["64", "1"]},
                %a: tensor<24x64xf32> {effc.sizes = ["24", "64"], effc.strides = ["64", "1"], effc.param = "first.weight"},
                %b: tensor<96x24xf32> {effc.sizes = ["96", "24"], effc.strides = ["24", "1"], effc.param = "second.weight"})
    -> (tensor<16x96xf32> {effc.strides = ["96", "1"]}) {
  %zero = arith.constant 0.0 : f32
  %f0 = tensor.empty() : tensor<16x24xf32>
  %f1 = linalg.fill ins(%zero : f32) outs(%f0 : tensor<16x24xf32>) -> tensor<16x24xf32>
  %f = linalg.contract indexing_maps = [affine_map<(d0, d1, d2) -> (d0, d2)>, affine_map<(d0, d1, d2) -> (d1, d2)>, affine_map<(d0, d1, d2) -> (d0, d1)>]
      ins(%x, %a : tensor<16x64xf32>, tensor<24x64xf32>) outs(%f1 : tensor<16x24xf32>) -> tensor<16x24xf32>
  %h0 = tensor.empty() : tensor<16x96xf32>
  %h1 = linalg.fill ins(%zero : f32) outs(%h0 : tensor<16x96xf32>) -> tensor<16x96xf32>
  %h = linalg.contract indexing_maps = [affine_map<(d0, d1, d2) -> (d0, d2)>, affine_map<(d0, d1, d2) -> (d1, d2)>, affine_map<(d0, d1, d2) -> (d0, d1)>]
      ins(%f, %b : tensor<16x24xf32>, tensor<96x24xf32>) outs(%h1 : tensor<16x96xf32>) -> tensor<16x96xf32>
  return %h : tensor<16x96xf32>
}
