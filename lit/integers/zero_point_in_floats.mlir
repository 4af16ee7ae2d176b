// RUN: effc-opt %s --emit kernels --target avx512 | filecheck %s

// A zero point for each group that is half a step from an integer: it is computed once, in f32, and packed so; the weight stays codes.
// CHECK: derived 1: pack_panels of prepared 0
// CHECK: kernel k0: contraction, d0: 4, d1: 32, reduction d2: 2, reduction d3: 4
// CHECK-NEXT: operands: read f32, packed i8, packed f32, packed f32, write f32
// CHECK: load 2[2*d1 + d2] : f32
// CHECK-NEXT: arith.subf
// CHECK: prepare
// CHECK: arith.addf {{.*}} : f32
func.func @main(%x: tensor<4x8xf32> {effc.sizes = ["4", "8"], effc.strides = ["8", "1"]},
                %w: tensor<32x8xi8> {effc.sizes = ["32", "8"], effc.strides = ["8", "1"], effc.param = "weight", effc.range = array<i64: -8, 7>},
                %p: tensor<32x2xi8> {effc.sizes = ["32", "2"], effc.strides = ["2", "1"], effc.param = "zeros"},
                %s: tensor<32x2xf32> {effc.sizes = ["32", "2"], effc.strides = ["2", "1"], effc.param = "scales"})
    -> (tensor<4x32xf32> {effc.strides = ["32", "1"]}) {
  %zero = arith.constant 0.0 : f32
  %half = arith.constant 0.5 : f32
  %z0 = tensor.empty() : tensor<32x2xf32>
  %z = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}
      ins(%p : tensor<32x2xi8>) outs(%z0 : tensor<32x2xf32>) {
  ^bb0(%a: i8, %o: f32):
    %0 = arith.sitofp %a : i8 to f32
    %1 = arith.addf %0, %half : f32
    linalg.yield %1 : f32
  } -> tensor<32x2xf32>
  %v = tensor.expand_shape %w [[0], [1, 2]] output_shape [32, 2, 4] : tensor<32x8xi8> into tensor<32x2x4xi8>
  %y0 = tensor.empty() : tensor<32x2x4xf32>
  %y1 = linalg.generic {indexing_maps = [affine_map<(d0, d1, d2) -> (d0, d1, d2)>, affine_map<(d0, d1, d2) -> (d0, d1)>, affine_map<(d0, d1, d2) -> (d0, d1)>, affine_map<(d0, d1, d2) -> (d0, d1, d2)>], iterator_types = ["parallel", "parallel", "parallel"]}
      ins(%v, %z, %s : tensor<32x2x4xi8>, tensor<32x2xf32>, tensor<32x2xf32>) outs(%y0 : tensor<32x2x4xf32>) {
  ^bb0(%a: i8, %b: f32, %f: f32, %o: f32):
    %0 = arith.sitofp %a : i8 to f32
    %1 = arith.subf %0, %b : f32
    %2 = arith.mulf %1, %f : f32
    linalg.yield %2 : f32
  } -> tensor<32x2x4xf32>
  %y = tensor.collapse_shape %y1 [[0], [1, 2]] : tensor<32x2x4xf32> into tensor<32x8xf32>
  %r0 = tensor.empty() : tensor<4x32xf32>
  %r1 = linalg.fill ins(%zero : f32) outs(%r0 : tensor<4x32xf32>) -> tensor<4x32xf32>
  %r = linalg.contract indexing_maps = [affine_map<(d0, d1, d2) -> (d0, d2)>, affine_map<(d0, d1, d2) -> (d1, d2)>, affine_map<(d0, d1, d2) -> (d0, d1)>]
      ins(%x, %y : tensor<4x8xf32>, tensor<32x8xf32>) outs(%r1 : tensor<4x32xf32>) -> tensor<4x32xf32>
  return %r : tensor<4x32xf32>
}
