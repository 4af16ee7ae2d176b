// RUN: effc-opt %s --emit kernels --target avx512 | filecheck %s

// Two dequantized tensors are joined, and quantized by the same numbers: their bytes are joined, and nothing is computed.
// CHECK-NOT: f32
// CHECK: load {{.*}} : i8
// CHECK-NEXT: store
// CHECK-NOT: roundeven
// CHECK-NOT: f32
func.func @main(%a: tensor<4x8xi8> {effc.sizes = ["4", "8"], effc.strides = ["8", "1"]},
                %b: tensor<4x8xi8> {effc.sizes = ["4", "8"], effc.strides = ["8", "1"]})
    -> (tensor<8x8xi8> {effc.strides = ["8", "1"]}) {
  %zero = arith.constant 3.0 : f32
  %scale = arith.constant 0.1 : f32
  %inverse = arith.constant 10.0 : f32
  %low = arith.constant -128.0 : f32
  %high = arith.constant 127.0 : f32
  %e = tensor.empty() : tensor<4x8xf32>
  %x = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}
      ins(%a : tensor<4x8xi8>) outs(%e : tensor<4x8xf32>) {
  ^bb0(%p: i8, %o: f32):
    %0 = arith.sitofp %p : i8 to f32
    %1 = arith.subf %0, %zero : f32
    %2 = arith.mulf %1, %scale : f32
    linalg.yield %2 : f32
  } -> tensor<4x8xf32>
  %y = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}
      ins(%b : tensor<4x8xi8>) outs(%e : tensor<4x8xf32>) {
  ^bb0(%p: i8, %o: f32):
    %0 = arith.sitofp %p : i8 to f32
    %1 = arith.subf %0, %zero : f32
    %2 = arith.mulf %1, %scale : f32
    linalg.yield %2 : f32
  } -> tensor<4x8xf32>
  %joined = tensor.concat dim(0) %x, %y : (tensor<4x8xf32>, tensor<4x8xf32>) -> tensor<8x8xf32>
  %r0 = tensor.empty() : tensor<8x8xi8>
  %r = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}
      ins(%joined : tensor<8x8xf32>) outs(%r0 : tensor<8x8xi8>) {
  ^bb0(%p: f32, %o: i8):
    %0 = arith.mulf %p, %inverse : f32
    %1 = math.roundeven %0 : f32
    %2 = arith.addf %1, %zero : f32
    %3 = arith.maximumf %2, %low : f32
    %4 = arith.minimumf %3, %high : f32
    %5 = arith.fptosi %4 : f32 to i8
    linalg.yield %5 : i8
  } -> tensor<8x8xi8>
  return %r : tensor<8x8xi8>
}
