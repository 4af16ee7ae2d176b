// RUN: effc-opt %s --emit kernels --target sm_90 | filecheck %s

// Of one row every program would compute all of the first product: there are two kernels.
// CHECK: call 0: k0
// CHECK: call 1: k1
// CHECK-NOT: block
func.func @main(%x: tensor<1x4096xf32> {effc.sizes = ["1","4096"], effc.strides = ["4096","1"]},
    %right: tensor<512x4096xf32> {effc.param = "right", effc.sizes = ["512","4096"], effc.strides = ["4096","1"]},
    %left: tensor<4096x512xf32> {effc.param = "left", effc.sizes = ["4096","512"], effc.strides = ["512","1"]})
    -> (tensor<1x4096xf32> {effc.strides = ["4096","1"]}) {
  %zero = arith.constant 0.0 : f32
  %e0 = tensor.empty() : tensor<1x512xf32>
  %i0 = linalg.fill ins(%zero : f32) outs(%e0 : tensor<1x512xf32>) -> tensor<1x512xf32>
  %h = linalg.contract indexing_maps = [affine_map<(m, n, k) -> (m, k)>, affine_map<(m, n, k) -> (n, k)>, affine_map<(m, n, k) -> (m, n)>]
    ins(%x, %right : tensor<1x4096xf32>, tensor<512x4096xf32>) outs(%i0 : tensor<1x512xf32>) -> tensor<1x512xf32> loc("model.py":3:0)
  %e1 = tensor.empty() : tensor<1x4096xf32>
  %i1 = linalg.fill ins(%zero : f32) outs(%e1 : tensor<1x4096xf32>) -> tensor<1x4096xf32>
  %y = linalg.contract indexing_maps = [affine_map<(m, n, k) -> (m, k)>, affine_map<(m, n, k) -> (n, k)>, affine_map<(m, n, k) -> (m, n)>]
    ins(%h, %left : tensor<1x512xf32>, tensor<4096x512xf32>) outs(%i1 : tensor<1x4096xf32>) -> tensor<1x4096xf32> loc("model.py":4:0)
  return %y : tensor<1x4096xf32>
}
