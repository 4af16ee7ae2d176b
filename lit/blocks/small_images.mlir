// RUN: effc-opt %s --emit kernels --target avx512 | filecheck %s

// Too few lines to share out.
// CHECK-NOT: block
// CHECK: kernel k2: contraction
func.func @main(%x: tensor<1x32x13x13xf32> {effc.sizes = ["1", "32", "13", "13"], effc.strides = ["5408", "1", "416", "32"]},
                %a: tensor<192x32x1x1xf32> {effc.sizes = ["192", "32", "1", "1"], effc.strides = ["32", "1", "1", "1"], effc.param = "expand.weight"},
                %b: tensor<192x1x3x3xf32> {effc.sizes = ["192", "1", "3", "3"], effc.strides = ["9", "9", "3", "1"], effc.param = "depthwise.weight"},
                %c: tensor<32x192x1x1xf32> {effc.sizes = ["32", "192", "1", "1"], effc.strides = ["192", "1", "1", "1"], effc.param = "project.weight"})
    -> (tensor<1x32x13x13xf32> {effc.strides = ["5408", "1", "416", "32"]}) {
  %zero = arith.constant 0.0 : f32
  %e0 = tensor.empty() : tensor<1x192x13x13xf32>
  %e1 = linalg.fill ins(%zero : f32) outs(%e0 : tensor<1x192x13x13xf32>) -> tensor<1x192x13x13xf32>
  %e = linalg.generic {indexing_maps = [affine_map<(d0, d1, d2, d3, d4, d5, d6) -> (d0, d4, d2 + d5, d3 + d6)>, affine_map<(d0, d1, d2, d3, d4, d5, d6) -> (d1, d4, d5, d6)>,
      affine_map<(d0, d1, d2, d3, d4, d5, d6) -> (d0, d1, d2, d3)>], iterator_types = ["parallel", "parallel", "parallel", "parallel", "reduction", "reduction", "reduction"]}
      ins(%x, %a : tensor<1x32x13x13xf32>, tensor<192x32x1x1xf32>) outs(%e1 : tensor<1x192x13x13xf32>) attrs = {effc.op = "conv"} {
  ^bb0(%p: f32, %q: f32, %o: f32):
    %0 = arith.mulf %p, %q : f32
    %1 = arith.addf %0, %o : f32
    linalg.yield %1 : f32
  } -> tensor<1x192x13x13xf32>
  %f0 = tensor.empty() : tensor<1x192x13x13xf32>
  %f = linalg.generic {indexing_maps = [affine_map<(d0, d1, d2, d3) -> (d0, d1, d2, d3)>, affine_map<(d0, d1, d2, d3) -> (d0, d1, d2, d3)>], iterator_types = ["parallel", "parallel", "parallel", "parallel"]}
      ins(%e : tensor<1x192x13x13xf32>) outs(%f0 : tensor<1x192x13x13xf32>) {
  ^bb0(%p: f32, %o: f32):
    %0 = arith.maximumf %p, %zero : f32
    linalg.yield %0 : f32
  } -> tensor<1x192x13x13xf32>
  %g = tensor.pad %f low[0, 0, 1, 1] high[0, 0, 1, 1] {
  ^bb0(%i: index, %j: index, %k: index, %l: index):
    tensor.yield %zero : f32
  } : tensor<1x192x13x13xf32> to tensor<1x192x15x15xf32>
  %h0 = tensor.empty() : tensor<1x192x13x13xf32>
  %h1 = linalg.fill ins(%zero : f32) outs(%h0 : tensor<1x192x13x13xf32>) -> tensor<1x192x13x13xf32>
  %h = linalg.generic {indexing_maps = [affine_map<(d0, d1, d2, d3, d4, d5, d6) -> (d0, d1 + d4, d2 + d5, d3 + d6)>, affine_map<(d0, d1, d2, d3, d4, d5, d6) -> (d1, d4, d5, d6)>,
      affine_map<(d0, d1, d2, d3, d4, d5, d6) -> (d0, d1, d2, d3)>], iterator_types = ["parallel", "parallel", "parallel", "parallel", "reduction", "reduction", "reduction"]}
      ins(%g, %b : tensor<1x192x15x15xf32>, tensor<192x1x3x3xf32>) outs(%h1 : tensor<1x192x13x13xf32>) attrs = {effc.op = "conv"} {
  ^bb0(%p: f32, %q: f32, %o: f32):
    %0 = arith.mulf %p, %q : f32
    %1 = arith.addf %0, %o : f32
    linalg.yield %1 : f32
  } -> tensor<1x192x13x13xf32>
  %i0 = tensor.empty() : tensor<1x192x13x13xf32>
  %i = linalg.generic {indexing_maps = [affine_map<(d0, d1, d2, d3) -> (d0, d1, d2, d3)>, affine_map<(d0, d1, d2, d3) -> (d0, d1, d2, d3)>], iterator_types = ["parallel", "parallel", "parallel", "parallel"]}
      ins(%h : tensor<1x192x13x13xf32>) outs(%i0 : tensor<1x192x13x13xf32>) {
  ^bb0(%p: f32, %o: f32):
    %0 = arith.maximumf %p, %zero : f32
    linalg.yield %0 : f32
  } -> tensor<1x192x13x13xf32>
  %m0 = tensor.empty() : tensor<1x32x13x13xf32>
  %m1 = linalg.fill ins(%zero : f32) outs(%m0 : tensor<1x32x13x13xf32>) -> tensor<1x32x13x13xf32>
  %m = linalg.generic {indexing_maps = [affine_map<(d0, d1, d2, d3, d4, d5, d6) -> (d0, d4, d2 + d5, d3 + d6)>, affine_map<(d0, d1, d2, d3, d4, d5, d6) -> (d1, d4, d5, d6)>,
      affine_map<(d0, d1, d2, d3, d4, d5, d6) -> (d0, d1, d2, d3)>], iterator_types = ["parallel", "parallel", "parallel", "parallel", "reduction", "reduction", "reduction"]}
      ins(%i, %c : tensor<1x192x13x13xf32>, tensor<32x192x1x1xf32>) outs(%m1 : tensor<1x32x13x13xf32>) attrs = {effc.op = "conv"} {
  ^bb0(%p: f32, %q: f32, %o: f32):
    %0 = arith.mulf %p, %q : f32
    %1 = arith.addf %0, %o : f32
    linalg.yield %1 : f32
  } -> tensor<1x32x13x13xf32>
  return %m : tensor<1x32x13x13xf32>
}
