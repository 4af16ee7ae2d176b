// RUN: effc-opt %s --emit kernels --target sm_90 | filecheck %s
// RUN: effc-opt %s --emit code --target sm_90 | filecheck %s --check-prefix=CODE

// A row of the weight's blocks has 16 outputs; a program goes through those that are stored, and gathers what they multiply.
// CHECK: derived 0: block_elements of input 1
// CHECK-NEXT: derived 1: block_places of input 1
// CHECK-NEXT: derived 2: block_starts of input 1
// CHECK: call 0: k0 "contract" at model.py:3 (input 0, derived 0, output 0, derived 1, derived 2)
// CHECK: kernel k0: contraction, {{.*}}schedule {{.*}}sparse=rows
// CHECK-NEXT: operands: read f16, packed f16, write f32, packed i32, packed i32

// CODE: %[[LOW:[0-9]+]] = "tt.load"{{.*}} -> i32
// CODE: %[[HIGH:[0-9]+]] = "tt.load"{{.*}} -> i32
// CODE: scf.for %{{.*}} = %[[LOW]] to %[[HIGH]]
// CODE-NOT: "tt.dot"
// CODE: "tt.reduce"
func.func @main(%x: tensor<1x4096xf16> {effc.sizes = ["1","4096"], effc.strides = ["4096","1"]},
    %w: tensor<4096x4096xf16> {effc.param = "weight", effc.sizes = ["4096","4096"], effc.strides = ["4096","1"],
      effc.sparsity = #sparse_tensor.encoding<{ map = (i, j) -> (i floordiv 16 : dense, j : compressed, i mod 16 : dense) }>, effc.stored = 262144 : i64})
    -> (tensor<1x4096xf32> {effc.strides = ["4096","1"]}) {
  %zero = arith.constant 0.0 : f32
  %e = tensor.empty() : tensor<1x4096xf32>
  %i = linalg.fill ins(%zero : f32) outs(%e : tensor<1x4096xf32>) -> tensor<1x4096xf32>
  %m = linalg.contract indexing_maps = [affine_map<(m, n, k) -> (m, k)>, affine_map<(m, n, k) -> (n, k)>, affine_map<(m, n, k) -> (m, n)>]
    ins(%x, %w : tensor<1x4096xf16>, tensor<4096x4096xf16>) outs(%i : tensor<1x4096xf32>) -> tensor<1x4096xf32> loc("model.py":3:0)
  return %m : tensor<1x4096xf32>
}
