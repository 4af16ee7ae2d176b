// RUN: effc-opt %s --emit kernels --target avx2 | filecheck %s

// A vector of eight floats holds no group of sixteen.
// CHECK: derived 0: pack_panels of input 1
// CHECK: kernel k0: contraction
// CHECK-NOT: sparse=
func.func @main(%x: tensor<1x256xf32> {effc.sizes = ["1", "256"], effc.strides = ["256", "1"]},
                %w: tensor<128x256xf32> {effc.sizes = ["128", "256"], effc.strides = ["256", "1"], effc.param = "weight", effc.sparsity = #sparse_tensor.encoding<{ map = (i, j) -> (i : dense, j floordiv 16 : dense, j mod 16 : structured[4, 16]) }>, effc.stored = 8192 : i64},
                %b: tensor<128xf32> {effc.sizes = ["128"], effc.strides = ["1"], effc.param = "bias"})
    -> (tensor<1x128xf32> {effc.strides = ["128", "1"]}) {
  %zero = arith.constant 0.0 : f32
  %r0 = tensor.empty() : tensor<1x128xf32>
  %r1 = linalg.fill ins(%zero : f32) outs(%r0 : tensor<1x128xf32>) -> tensor<1x128xf32>
  %r = linalg.contract indexing_maps = [affine_map<(d0, d1, d2) -> (d0, d2)>, affine_map<(d0, d1, d2) -> (d1, d2)>, affine_map<(d0, d1, d2) -> (d0, d1)>]
      ins(%x, %w : tensor<1x256xf32>, tensor<128x256xf32>) outs(%r1 : tensor<1x128xf32>) -> tensor<1x128xf32>
  %s0 = tensor.empty() : tensor<1x128xf32>
  %s = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d1)>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}
      ins(%r, %b : tensor<1x128xf32>, tensor<128xf32>) outs(%s0 : tensor<1x128xf32>) {
  ^bb0(%p: f32, %q: f32, %o: f32):
    %0 = arith.addf %p, %q : f32
    linalg.yield %0 : f32
  } -> tensor<1x128xf32>
  return %s : tensor<1x128xf32>
}
