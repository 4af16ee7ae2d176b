// RUN: effc-opt %s --emit kernels --target avx512 | filecheck %s

// The largest code of each window, then dequantized: what the pool reads, its border included, is bytes.
// CHECK: kernel k0: loops, d0: 4, d1: 4, reduction d2: 2, reduction d3: 2
// CHECK-NEXT: operands: read i8, write f32
// CHECK-NEXT: v0 = load 0[{{.*}}] : i8
// CHECK-NEXT: v1 = reduce v0 kind=umax : i8
// CHECK-NEXT: v2 = arith.uitofp v1 : f32
func.func @main(%q: tensor<8x8xi8> {effc.sizes = ["8", "8"], effc.strides = ["8", "1"]})
    -> (tensor<4x4xf32> {effc.strides = ["4", "1"]}) {
  %least = arith.constant 0xFF800000 : f32
  %scale = arith.constant 0.5 : f32
  %x0 = tensor.empty() : tensor<8x8xf32>
  %x = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}
      ins(%q : tensor<8x8xi8>) outs(%x0 : tensor<8x8xf32>) {
  ^bb0(%p: i8, %o: f32):
    %0 = arith.uitofp %p : i8 to f32
    %1 = arith.mulf %0, %scale : f32
    linalg.yield %1 : f32
  } -> tensor<8x8xf32>
  %window = tensor.empty() : tensor<2x2xf32>
  %r0 = tensor.empty() : tensor<4x4xf32>
  %r1 = linalg.fill ins(%least : f32) outs(%r0 : tensor<4x4xf32>) -> tensor<4x4xf32>
  %r = linalg.generic {indexing_maps = [affine_map<(d0, d1, d2, d3) -> (d0 * 2 + d2, d1 * 2 + d3)>, affine_map<(d0, d1, d2, d3) -> (d2, d3)>, affine_map<(d0, d1, d2, d3) -> (d0, d1)>],
      iterator_types = ["parallel", "parallel", "reduction", "reduction"]}
      ins(%x, %window : tensor<8x8xf32>, tensor<2x2xf32>) outs(%r1 : tensor<4x4xf32>) attrs = {effc.op = "pool"} {
  ^bb0(%p: f32, %shape: f32, %acc: f32):
    %0 = arith.maximumf %p, %acc : f32
    linalg.yield %0 : f32
  } -> tensor<4x4xf32>
  return %r : tensor<4x4xf32>
}
