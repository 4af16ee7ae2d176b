// RUN: effc-opt %s --emit kernels --target sm_90 | filecheck %s

// Rows of 96, scaled by one over their largest, then an MLP: all three are one kernel.
// CHECK: call 0: k0 "{{.*}}" at model.py:4 (input 0, input 1, input 2, output 0, arena, arena + 64)
// CHECK-NOT: call 1
// CHECK: kernel k0: block
// CHECK-NEXT: operands: read f16, read f16, read f16, write f16, scratch f16, scratch f16
// CHECK: stage 0: loops, d0: 50176, reduction d1: 96
// CHECK: stage 1: contraction, d0: 50176, d1: 384, reduction d2: 96
// CHECK: stage 2: contraction, d0: 50176, d1: 96, reduction d2: 384
func.func @main(%x: tensor<50176x96xf16> {effc.sizes = ["50176","96"], effc.strides = ["96","1"]},
    %up: tensor<384x96xf16> {effc.param = "up", effc.sizes = ["384","96"], effc.strides = ["96","1"]},
    %down: tensor<96x384xf16> {effc.param = "down", effc.sizes = ["96","384"], effc.strides = ["384","1"]})
    -> (tensor<50176x96xf16> {effc.strides = ["96","1"]}) {
  %zero = arith.constant 0.0 : f32
  %none = arith.constant 0xFC00 : f16
  %r = tensor.empty() : tensor<50176xf16>
  %ri = linalg.fill ins(%none : f16) outs(%r : tensor<50176xf16>) -> tensor<50176xf16>
  %largest = linalg.generic {indexing_maps = [affine_map<(m, k) -> (m, k)>, affine_map<(m, k) -> (m)>], iterator_types = ["parallel", "reduction"]}
    ins(%x : tensor<50176x96xf16>) outs(%ri : tensor<50176xf16>) {
  ^bb0(%a: f16, %b: f16):
    %m = arith.maximumf %a, %b : f16
    linalg.yield %m : f16
  } -> tensor<50176xf16> loc("model.py":2:0)
  %n = tensor.empty() : tensor<50176x96xf16>
  %normed = linalg.generic {indexing_maps = [affine_map<(m, k) -> (m, k)>, affine_map<(m, k) -> (m)>, affine_map<(m, k) -> (m, k)>], iterator_types = ["parallel", "parallel"]}
    ins(%x, %largest : tensor<50176x96xf16>, tensor<50176xf16>) outs(%n : tensor<50176x96xf16>) {
  ^bb0(%a: f16, %b: f16, %o: f16):
    %d = arith.divf %a, %b : f16
    linalg.yield %d : f16
  } -> tensor<50176x96xf16> loc("model.py":2:0)
  %e0 = tensor.empty() : tensor<50176x384xf32>
  %i0 = linalg.fill ins(%zero : f32) outs(%e0 : tensor<50176x384xf32>) -> tensor<50176x384xf32>
  %h = linalg.contract indexing_maps = [affine_map<(m, n, k) -> (m, k)>, affine_map<(m, n, k) -> (n, k)>, affine_map<(m, n, k) -> (m, n)>]
    ins(%normed, %up : tensor<50176x96xf16>, tensor<384x96xf16>) outs(%i0 : tensor<50176x384xf32>) -> tensor<50176x384xf32> loc("model.py":3:0)
  %t0 = tensor.empty() : tensor<50176x384xf16>
  %act = linalg.generic {indexing_maps = [affine_map<(m, k) -> (m, k)>, affine_map<(m, k) -> (m, k)>], iterator_types = ["parallel", "parallel"]}
    ins(%h : tensor<50176x384xf32>) outs(%t0 : tensor<50176x384xf16>) {
  ^bb0(%a: f32, %o: f16):
    %p = arith.maximumf %a, %zero : f32
    %q = arith.truncf %p : f32 to f16
    linalg.yield %q : f16
  } -> tensor<50176x384xf16> loc("model.py":3:0)
  %e1 = tensor.empty() : tensor<50176x96xf32>
  %i1 = linalg.fill ins(%zero : f32) outs(%e1 : tensor<50176x96xf32>) -> tensor<50176x96xf32>
  %y = linalg.contract indexing_maps = [affine_map<(m, n, k) -> (m, k)>, affine_map<(m, n, k) -> (n, k)>, affine_map<(m, n, k) -> (m, n)>]
    ins(%act, %down : tensor<50176x384xf16>, tensor<96x384xf16>) outs(%i1 : tensor<50176x96xf32>) -> tensor<50176x96xf32> loc("model.py":4:0)
  %t1 = tensor.empty() : tensor<50176x96xf16>
  %out = linalg.generic {indexing_maps = [affine_map<(m, k) -> (m, k)>, affine_map<(m, k) -> (m, k)>], iterator_types = ["parallel", "parallel"]}
    ins(%y : tensor<50176x96xf32>) outs(%t1 : tensor<50176x96xf16>) {
  ^bb0(%a: f32, %o: f16):
    %q = arith.truncf %a : f32 to f16
    linalg.yield %q : f16
  } -> tensor<50176x96xf16> loc("model.py":4:0)
  return %out : tensor<50176x96xf16>
}
