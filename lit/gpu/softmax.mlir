// RUN: effc-opt %s --emit code --target sm_80 | filecheck %s

// Rows of 10 lie in tiles of 16 columns whole: every element is read once, and both reductions take the tile that was read.
// CHECK: "tt.func"
// CHECK-COUNT-1: "tt.load"
// CHECK-NOT: "tt.load"
// CHECK: "tt.reduce"
// CHECK: arith.maximumf
// CHECK: symbol = "__nv_expf"
// CHECK: "tt.reduce"
// CHECK: arith.addf
// CHECK: "tt.precise_divf"
// CHECK: "tt.store"
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
