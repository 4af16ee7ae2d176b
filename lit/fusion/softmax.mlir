// RUN: effc-opt %s --emit kernels --target avx2 | filecheck %s

// Softmax over rows whose number is a symbol: two reductions and what hangs on them are one kernel, and one for every size.
// CHECK: program(s0), arena of 0 bytes
// CHECK-NEXT: input 0: f32[s0, 10] strides (10, 1)
// CHECK: call 0: k0
// CHECK-SAME: for (s0)
// CHECK-NOT: call 1
// CHECK: kernel k0: loops, d0: s0, reduction d1: 10
// CHECK: v0 = load 0[10*d0 + d1] : f32
// CHECK-NEXT: v1 = reduce v0 kind=max : f32
// CHECK-NEXT: v2 = arith.subf v0 v1 : f32
// CHECK-NEXT: v3 = math.exp v2 : f32
// CHECK-NEXT: v4 = reduce v3 kind=add : f32
// CHECK-NEXT: v5 = arith.divf v3 v4 : f32
// CHECK-NEXT: store v5 to 1[10*d0 + d1]
func.func @main(%s0: index {effc.symbol = "s0"},
                %x: tensor<?x10xf32> {effc.sizes = ["s0", "10"], effc.strides = ["10", "1"]})
    -> (tensor<?x10xf32> {effc.strides = ["10", "1"]}) {
  %lowest = arith.constant 0xFF800000 : f32
  %zero = arith.constant 0.0 : f32
  %rows = tensor.empty(%s0) : tensor<?xf32>
  %all = tensor.empty(%s0) : tensor<?x10xf32>
  %m0 = linalg.fill ins(%lowest : f32) outs(%rows : tensor<?xf32>) -> tensor<?xf32>
  %m = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0)>], iterator_types = ["parallel", "reduction"]}
      ins(%x : tensor<?x10xf32>) outs(%m0 : tensor<?xf32>) {
  ^bb0(%p: f32, %acc: f32):
    %0 = arith.maximumf %acc, %p : f32
    linalg.yield %0 : f32
  } -> tensor<?xf32>
  %e = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0)>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}
      ins(%x, %m : tensor<?x10xf32>, tensor<?xf32>) outs(%all : tensor<?x10xf32>) {
  ^bb0(%p: f32, %q: f32, %o: f32):
    %0 = arith.subf %p, %q : f32
    %1 = math.exp %0 : f32
    linalg.yield %1 : f32
  } -> tensor<?x10xf32>
  %t0 = linalg.fill ins(%zero : f32) outs(%rows : tensor<?xf32>) -> tensor<?xf32>
  %t = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0)>], iterator_types = ["parallel", "reduction"]}
      ins(%e : tensor<?x10xf32>) outs(%t0 : tensor<?xf32>) {
  ^bb0(%p: f32, %acc: f32):
    %0 = arith.addf %acc, %p : f32
    linalg.yield %0 : f32
  } -> tensor<?xf32>
  %r = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0)>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}
      ins(%e, %t : tensor<?x10xf32>, tensor<?xf32>) outs(%all : tensor<?x10xf32>) {
  ^bb0(%p: f32, %q: f32, %o: f32):
    %0 = arith.divf %p, %q : f32
    linalg.yield %0 : f32
  } -> tensor<?x10xf32>
  return %r : tensor<?x10xf32>
}
