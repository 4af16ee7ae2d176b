// RUN: effc-opt %s --emit kernels --target avx512 | filecheck %s

// L2 does not hold the factors of both, so each block of rows would fetch them anew.
// CHECK-NOT: block
// CHECK: kernel k1: contraction
func.func @main(%x: tensor<3136x768xf32> {effc.sizes = ["3136", "768"], effc.strides = ["768", "1"]},
                %a: tensor<288x768xf32> {effc.sizes = ["288", "768"], effc.strides = ["768", "1"], effc.param = "first.weight"},
                %b: tensor<768x288xf32> {effc.sizes = ["768", "288"], effc.strides = ["288", "1"], effc.param = "second.weight"})
    -> (tensor<3136x768xf32> {effc.strides = ["768", "1"]}) {
  %zero = arith.constant 0.0 : f32
  %f0 = tensor.empty() : tensor<3136x288xf32>
  %f1 = linalg.fill ins(%zero : f32) outs(%f0 : tensor<3136x288xf32>) -> tensor<3136x288xf32>
  %f = linalg.contract indexing_maps = [affine_map<(d0, d1, d2) -> (d0, d2)>, affine_map<(d0, d1, d2) -> (d1, d2)>, affine_map<(d0, d1, d2) -> (d0, d1)>]
      ins(%x, %a : tensor<3136x768xf32>, tensor<288x768xf32>) outs(%f1 : tensor<3136x288xf32>) -> tensor<3136x288xf32>
  %h0 = tensor.empty() : tensor<3136x768xf32>
  %h1 = linalg.fill ins(%zero : f32) outs(%h0 : tensor<3136x768xf32>) -> tensor<3136x768xf32>
  %h = linalg.contract indexing_maps = [affine_map<(d0, d1, d2) -> (d0, d2)>, affine_map<(d0, d1, d2) -> (d1, d2)>, affine_map<(d0, d1, d2) -> (d0, d1)>]
      ins(%f, %b : tensor<3136x288xf32>, tensor<768x288xf32>) outs(%h1 : tensor<3136x768xf32>) -> tensor<3136x768xf32>
  return %h : tensor<3136x768xf32>
}
