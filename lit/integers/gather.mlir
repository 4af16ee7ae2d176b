// RUN: effc-opt %s --emit kernels --target avx512 | filecheck %s

// Rows of a dequantized table: codes are gathered, and nothing is prepared.
// CHECK-NOT: derived
// CHECK: kernel k0: loops, d0: 5, d1: 64
// CHECK-NEXT: operands: read i64, read i8, read f32, write f32
// CHECK: load 1[d1 + 64*{{v[0-9]+}}] : i8
// CHECK-NEXT: load 2[{{v[0-9]+}}] : f32
// CHECK-NOT: prepare
func.func @main(%i: tensor<5xi64> {effc.sizes = ["5"], effc.strides = ["1"]},
                %w: tensor<100x64xi8> {effc.sizes = ["100", "64"], effc.strides = ["64", "1"], effc.param = "table"},
                %s: tensor<100xf32> {effc.sizes = ["100"], effc.strides = ["1"], effc.param = "scale"})
    -> (tensor<5x64xf32> {effc.strides = ["64", "1"]}) {
  %y0 = tensor.empty() : tensor<100x64xf32>
  %y = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0)>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}
      ins(%w, %s : tensor<100x64xi8>, tensor<100xf32>) outs(%y0 : tensor<100x64xf32>) {
  ^bb0(%p: i8, %f: f32, %o: f32):
    %0 = arith.sitofp %p : i8 to f32
    %1 = arith.mulf %0, %f : f32
    linalg.yield %1 : f32
  } -> tensor<100x64xf32>
  %r0 = tensor.empty() : tensor<5x64xf32>
  %r = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0)>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}
      ins(%i : tensor<5xi64>) outs(%r0 : tensor<5x64xf32>) {
  ^bb0(%p: i64, %o: f32):
    %0 = arith.index_cast %p : i64 to index
    %1 = linalg.index 1 : index
    %2 = tensor.extract %y[%0, %1] : tensor<100x64xf32>
    linalg.yield %2 : f32
  } -> tensor<5x64xf32>
  return %r : tensor<5x64xf32>
}
