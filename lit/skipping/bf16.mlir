// RUN: effc-opt %s --emit kernels --target avx512 | filecheck %s
// RUN: sed s/bf16/f16/g %s | effc-opt - --emit kernels --target avx512 | filecheck %s --check-prefix=F16

// Rows of a bfloat16 weight are left out as of a float32 one; sums are float32.
// CHECK: schedule skip=inputs
// CHECK: packed bf16

// Of other types they are not.
// F16-NOT: skip=
func.func @main(%x: tensor<1x640xbf16> {effc.sizes = ["1", "640"], effc.strides = ["640", "1"]},
                %w: tensor<512x640xbf16> {effc.sizes = ["512", "640"], effc.strides = ["640", "1"], effc.param = "weight"})
    -> (tensor<1x512xbf16> {effc.strides = ["512", "1"]}) {
  %zero = arith.constant 0.0 : f32
  %low = arith.constant 0.0 : bf16
  %h0 = tensor.empty() : tensor<1x640xbf16>
  %h = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}
      ins(%x : tensor<1x640xbf16>) outs(%h0 : tensor<1x640xbf16>) {
  ^bb0(%p: bf16, %o: bf16):
    %0 = arith.maximumf %p, %low : bf16
    linalg.yield %0 : bf16
  } -> tensor<1x640xbf16>
  %s0 = tensor.empty() : tensor<1x512xf32>
  %s1 = linalg.fill ins(%zero : f32) outs(%s0 : tensor<1x512xf32>) -> tensor<1x512xf32>
  %s = linalg.contract indexing_maps = [affine_map<(d0, d1, d2) -> (d0, d2)>, affine_map<(d0, d1, d2) -> (d1, d2)>, affine_map<(d0, d1, d2) -> (d0, d1)>]
      ins(%h, %w : tensor<1x640xbf16>, tensor<512x640xbf16>) outs(%s1 : tensor<1x512xf32>) -> tensor<1x512xf32>
  %r0 = tensor.empty() : tensor<1x512xbf16>
  %r = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}
      ins(%s : tensor<1x512xf32>) outs(%r0 : tensor<1x512xbf16>) {
  ^bb0(%p: f32, %o: bf16):
    %0 = arith.truncf %p : f32 to bf16
    linalg.yield %0 : bf16
  } -> tensor<1x512xbf16>
  return %r : tensor<1x512xbf16>
}
