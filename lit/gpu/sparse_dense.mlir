// RUN: effc-opt %s --emit kernels --target sm_90 | filecheck %s

// Most blocks are stored: the dense kernel reads fewer bytes.
// CHECK-NOT: derived
// CHECK: kernel k0: contraction
// CHECK-NEXT: operands: read f16, read f16, write f32


func.func @main(%x: tensor<1x4096xf16> {effc.sizes = ["1","4096"], effc.strides = ["4096","1"]},
    %w: tensor<4096x4096xf16> {effc.param = "weight", effc.sizes = ["4096","4096"], effc.strides = ["4096","1"],
      effc.sparsity = #sparse_tensor.encoding<{ map = (i, j) -> (i floordiv 16 : dense, j : compressed, i mod 16 : dense) }>, effc.stored = 900000 : i64})
    -> (tensor<1x4096xf32> {effc.strides = ["4096","1"]}) {
  %zero = arith.constant 0.0 : f32
  %e = tensor.empty() : tensor<1x4096xf32>
  %i = linalg.fill ins(%zero : f32) outs(%e : tensor<1x4096xf32>) -> tensor<1x4096xf32>
  %m = linalg.contract indexing_maps = [affine_map<(m, n, k) -> (m, k)>, affine_map<(m, n, k) -> (n, k)>, affine_map<(m, n, k) -> (m, n)>]
    ins(%x, %w : tensor<1x4096xf16>, tensor<4096x4096xf16>) outs(%i : tensor<1x4096xf32>) -> tensor<1x4096xf32> loc("model.py":3:0)
  return %m : tensor<1x4096xf32>
}
