// RUN: effc-opt %s --emit kernels --target avx512 | filecheck %s

// Whole windows between an input channel and 16 output channels: 25 of 128 are there, which are 9 blocks of 16 x 1 each.
// CHECK: derived 0: sparse_panels of input 1
// CHECK: kernel k0: contraction
// CHECK-SAME: sparse=columns
func.func @main(%x: tensor<1x32x29x29xf32> {effc.sizes = ["1", "32", "29", "29"], effc.strides = ["26912", "1", "928", "32"]},
                %w: tensor<64x3x3x32xf32> {effc.sizes = ["64", "3", "3", "32"], effc.strides = ["288", "96", "32", "1"], effc.param = "weight", effc.sparsity = #sparse_tensor.encoding<{ map = (i, j) -> (i floordiv 16 : dense, j : compressed, i mod 16 : dense) }>, effc.stored = 225 : i64})
    -> (tensor<1x64x14x14xf32> {effc.strides = ["12544", "1", "896", "64"]}) {
  %zero = arith.constant 0.0 : f32
  %r0 = tensor.empty() : tensor<1x64x14x14xf32>
  %r1 = linalg.fill ins(%zero : f32) outs(%r0 : tensor<1x64x14x14xf32>) -> tensor<1x64x14x14xf32>
  %r = linalg.generic {indexing_maps = [affine_map<(d0, d1, d2, d3, d4, d5, d6) -> (d0, d4, d2 * 2 + d5, d3 * 2 + d6)>, affine_map<(d0, d1, d2, d3, d4, d5, d6) -> (d1, d5, d6, d4)>,
      affine_map<(d0, d1, d2, d3, d4, d5, d6) -> (d0, d1, d2, d3)>], iterator_types = ["parallel", "parallel", "parallel", "parallel", "reduction", "reduction", "reduction"]}
      ins(%x, %w : tensor<1x32x29x29xf32>, tensor<64x3x3x32xf32>) outs(%r1 : tensor<1x64x14x14xf32>) attrs = {effc.op = "conv"} {
  ^bb0(%p: f32, %q: f32, %o: f32):
    %0 = arith.mulf %p, %q : f32
    %1 = arith.addf %0, %o : f32
    linalg.yield %1 : f32
  } -> tensor<1x64x14x14xf32>
  return %r : tensor<1x64x14x14xf32>
}
