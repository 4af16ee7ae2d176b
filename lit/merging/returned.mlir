// RUN: effc-opt %s --emit kernels --target avx512 | filecheck %s

// The keys are returned too: their contraction writes the result itself, and so it stays apart.
// CHECK-NOT: {{ and }}
// CHECK: call 0: k0 "contract" {{.*}} (input 0, derived 0, arena)
// CHECK-NEXT: call 1: k0 "contract" {{.*}} (input 0, derived 1, output 1)
// CHECK-NEXT: call 2: k1
// CHECK: kernel k0: contraction, d0: 4, d1: 16, reduction d2: 8
func.func @main(%x: tensor<4x8xf32> {effc.sizes = ["4", "8"], effc.strides = ["8", "1"]},
                %wq: tensor<16x8xf32> {effc.sizes = ["16", "8"], effc.strides = ["8", "1"], effc.param = "query.weight"},
                %wk: tensor<16x8xf32> {effc.sizes = ["16", "8"], effc.strides = ["8", "1"], effc.param = "key.weight"})
    -> (tensor<4x4xf32> {effc.strides = ["4", "1"]}, tensor<4x16xf32> {effc.strides = ["16", "1"]}) {
  %zero = arith.constant 0.0 : f32
  %q0 = tensor.empty() : tensor<4x16xf32>
  %q1 = linalg.fill ins(%zero : f32) outs(%q0 : tensor<4x16xf32>) -> tensor<4x16xf32>
  %q = linalg.contract indexing_maps = [affine_map<(d0, d1, d2) -> (d0, d2)>, affine_map<(d0, d1, d2) -> (d1, d2)>, affine_map<(d0, d1, d2) -> (d0, d1)>]
      ins(%x, %wq : tensor<4x8xf32>, tensor<16x8xf32>) outs(%q1 : tensor<4x16xf32>) -> tensor<4x16xf32>
  %k0 = tensor.empty() : tensor<4x16xf32>
  %k1 = linalg.fill ins(%zero : f32) outs(%k0 : tensor<4x16xf32>) -> tensor<4x16xf32>
  %k = linalg.contract indexing_maps = [affine_map<(d0, d1, d2) -> (d0, d2)>, affine_map<(d0, d1, d2) -> (d1, d2)>, affine_map<(d0, d1, d2) -> (d0, d1)>]
      ins(%x, %wk : tensor<4x8xf32>, tensor<16x8xf32>) outs(%k1 : tensor<4x16xf32>) -> tensor<4x16xf32>
  %r0 = tensor.empty() : tensor<4x4xf32>
  %r1 = linalg.fill ins(%zero : f32) outs(%r0 : tensor<4x4xf32>) -> tensor<4x4xf32>
  %r = linalg.contract indexing_maps = [affine_map<(d0, d1, d2) -> (d0, d2)>, affine_map<(d0, d1, d2) -> (d1, d2)>, affine_map<(d0, d1, d2) -> (d0, d1)>]
      ins(%q, %k : tensor<4x16xf32>, tensor<4x16xf32>) outs(%r1 : tensor<4x4xf32>) -> tensor<4x4xf32>
  return %r, %k : tensor<4x4xf32>, tensor<4x16xf32>
}
