// RUN: effc-opt %s --emit kernels --target avx512 | filecheck %s

// Two products read what lies between.
// CHECK-NOT: block
func.func @main(%x: tensor<3136x64xf32> {effc.sizes = ["3136", "64"], effc.strides = ["64", "1"]},
                %a: tensor<24x64xf32> {effc.sizes = ["24", "64"], effc.strides = ["64", "1"], effc.param = "first.weight"},
                %b: tensor<96x24xf32> {effc.sizes = ["96", "24"], effc.strides = ["24", "1"], effc.param = "second.weight"},
                %c: tensor<96x24xf32> {effc.sizes = ["96", "24"], effc.strides = ["24", "1"], effc.param = "third.weight"})
    -> (tensor<3136x96xf32> {effc.strides = ["96", "1"]}, tensor<3136x96xf32> {effc.strides = ["96", "1"]}) {
  %zero = arith.constant 0.0 : f32
  %f0 = tensor.empty() : tensor<3136x24xf32>
  %f1 = linalg.fill ins(%zero : f32) outs(%f0 : tensor<3136x24xf32>) -> tensor<3136x24xf32>
  %f = linalg.contract indexing_maps = [affine_map<(d0, d1, d2) -> (d0, d2)>, affine_map<(d0, d1, d2) -> (d1, d2)>, affine_map<(d0, d1, d2) -> (d0, d1)>]
      ins(%x, %a : tensor<3136x64xf32>, tensor<24x64xf32>) outs(%f1 : tensor<3136x24xf32>) -> tensor<3136x24xf32>
  %g0 = tensor.empty() : tensor<3136x24xf32>
  %g = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}
      ins(%f : tensor<3136x24xf32>) outs(%g0 : tensor<3136x24xf32>) {
  ^bb0(%p: f32, %o: f32):
    %0 = arith.maximumf %p, %zero : f32
    linalg.yield %0 : f32
  } -> tensor<3136x24xf32>
  %h0 = tensor.empty() : tensor<3136x96xf32>
  %h1 = linalg.fill ins(%zero : f32) outs(%h0 : tensor<3136x96xf32>) -> tensor<3136x96xf32>
  %h = linalg.contract indexing_maps = [affine_map<(d0, d1, d2) -> (d0, d2)>, affine_map<(d0, d1, d2) -> (d1, d2)>, affine_map<(d0, d1, d2) -> (d0, d1)>]
      ins(%g, %b : tensor<3136x24xf32>, tensor<96x24xf32>) outs(%h1 : tensor<3136x96xf32>) -> tensor<3136x96xf32>
  %i0 = tensor.empty() : tensor<3136x96xf32>
  %i1 = linalg.fill ins(%zero : f32) outs(%i0 : tensor<3136x96xf32>) -> tensor<3136x96xf32>
  %i = linalg.contract indexing_maps = [affine_map<(d0, d1, d2) -> (d0, d2)>, affine_map<(d0, d1, d2) -> (d1, d2)>, affine_map<(d0, d1, d2) -> (d0, d1)>]
      ins(%g, %c : tensor<3136x24xf32>, tensor<96x24xf32>) outs(%i1 : tensor<3136x96xf32>) -> tensor<3136x96xf32>
  return %h, %i : tensor<3136x96xf32>, tensor<3136x96xf32>
}
