// RUN: effc-opt %s --emit code --target sm_90+tma | filecheck %s
// RUN: effc-opt %s --emit code --target sm_90 | filecheck %s --check-prefix=PLAIN

// Rows begin at multiples of 16 bytes: the hardware copies tiles of both factors, and puts zeros where the matrices end. The weight, whose
// neighbours lie along the sum, is transposed on its way to the tensor cores.
// CHECK: "tt.func"
// CHECK: "tt.make_tensor_descriptor"
// CHECK: "tt.make_tensor_descriptor"
// CHECK: "tt.descriptor_load"
// CHECK: "tt.descriptor_load"
// CHECK: "tt.trans"
// CHECK: "tt.dot"
// CHECK: "tt.store"
// PLAIN: "tt.func"
// PLAIN-NOT: descriptor
func.func @main(%x: tensor<40x72xf16> {effc.sizes = ["40","72"], effc.strides = ["72","1"]}, %w: tensor<56x72xf16> {effc.param = "weight", effc.sizes = ["56","72"], effc.strides = ["72","1"]}) -> (tensor<40x56xf32> {effc.strides = ["56","1"]}) {
  %zero = arith.constant 0.0 : f32
  %e = tensor.empty() : tensor<40x56xf32>
  %i = linalg.fill ins(%zero : f32) outs(%e : tensor<40x56xf32>) -> tensor<40x56xf32>
  %m = linalg.contract indexing_maps = [affine_map<(m, n, k) -> (m, k)>, affine_map<(m, n, k) -> (n, k)>, affine_map<(m, n, k) -> (m, n)>]
    ins(%x, %w : tensor<40x72xf16>, tensor<56x72xf16>) outs(%i : tensor<40x56xf32>) -> tensor<40x56xf32> loc("model.py":3:0)
  return %m : tensor<40x56xf32>
}
