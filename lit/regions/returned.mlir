// RUN: effc-opt %s --emit regions --target avx512 | filecheck %s

// What lies between the two products is returned too.
// CHECK: no region
#left = affine_map<(d0, d1, d2) -> (d0, d2)>
#right = affine_map<(d0, d1, d2) -> (d1, d2)>
#sums = affine_map<(d0, d1, d2) -> (d0, d1)>
#all = affine_map<(d0, d1) -> (d0, d1)>
func.func @main(%x: tensor<64x32xf32> {effc.sizes = ["64", "32"], effc.strides = ["32", "1"]},
                %a: tensor<96x32xf32> {effc.sizes = ["96", "32"], effc.strides = ["32", "1"], effc.param = "up.weight"},
                %b: tensor<32x96xf32> {effc.sizes = ["32", "96"], effc.strides = ["96", "1"], effc.param = "down.weight"})
    -> (tensor<64x32xf32> {effc.strides = ["32", "1"]}, tensor<64x96xf32> {effc.strides = ["96", "1"]}) {
  %zero = arith.constant 0.0 : f32
  %u0 = tensor.empty() : tensor<64x96xf32>
  %u1 = linalg.fill ins(%zero : f32) outs(%u0 : tensor<64x96xf32>) -> tensor<64x96xf32>
  %u = linalg.contract indexing_maps = [#left, #right, #sums]
      ins(%x, %a : tensor<64x32xf32>, tensor<96x32xf32>) outs(%u1 : tensor<64x96xf32>) -> tensor<64x96xf32>
  %h0 = tensor.empty() : tensor<64x96xf32>
  %h = linalg.generic {indexing_maps = [#all, #all], iterator_types = ["parallel", "parallel"]}
      ins(%u : tensor<64x96xf32>) outs(%h0 : tensor<64x96xf32>) {
  ^bb0(%p: f32, %o: f32):
    %0 = math.tanh %p : f32
    linalg.yield %0 : f32
  } -> tensor<64x96xf32>
  %d0 = tensor.empty() : tensor<64x32xf32>
  %d1 = linalg.fill ins(%zero : f32) outs(%d0 : tensor<64x32xf32>) -> tensor<64x32xf32>
  %d = linalg.contract indexing_maps = [#left, #right, #sums]
      ins(%h, %b : tensor<64x96xf32>, tensor<32x96xf32>) outs(%d1 : tensor<64x32xf32>) -> tensor<64x32xf32>
  %y0 = tensor.empty() : tensor<64x32xf32>
  %y = linalg.generic {indexing_maps = [#all, #all, #all], iterator_types = ["parallel", "parallel"]}
      ins(%x, %d : tensor<64x32xf32>, tensor<64x32xf32>) outs(%y0 : tensor<64x32xf32>) {
  ^bb0(%p: f32, %q: f32, %o: f32):
    %0 = arith.addf %p, %q : f32
    linalg.yield %0 : f32
  } -> tensor<64x32xf32>
  return %y, %h : tensor<64x32xf32>, tensor<64x96xf32>
}
