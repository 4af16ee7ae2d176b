// RUN: effc-opt %s --emit kernels --target sm_90 | filecheck %s
// RUN: effc-opt %s --emit code --target sm_90 | filecheck %s --check-prefix=CODE

// A layer in two factors is one kernel; what lies between the products is in no memory.
// CHECK: call 0: k0 "{{.*}}" at model.py:4 (input 0, input 1, input 2, output 0, arena)
// CHECK-NOT: call 1
// CHECK: kernel k0: block
// CHECK-NEXT: operands: read f32, read f32, read f32, write f32, scratch f32
// CHECK-NEXT: stage 0: contraction, d0: 70, d1: 16, reduction d2: 48
// CHECK: store v2 to 4[16*d0 + d1]
// CHECK-NEXT: stage 1: contraction, d0: 70, d1: 64, reduction d2: 16
// CHECK-NEXT: v0 = load 4[16*d0 + d2]

// CODE: "tt.func"
// CODE: "tt.dot"
// CODE-NOT: "tt.store"
// CODE: "tt.dot"
// CODE: "tt.store"
// CODE: "tt.return"
func.func @main(%x: tensor<70x48xf32> {effc.sizes = ["70","48"], effc.strides = ["48","1"]},
    %right: tensor<16x48xf32> {effc.param = "right", effc.sizes = ["16","48"], effc.strides = ["48","1"]},
    %left: tensor<64x16xf32> {effc.param = "left", effc.sizes = ["64","16"], effc.strides = ["16","1"]})
    -> (tensor<70x64xf32> {effc.strides = ["64","1"]}) {
  %zero = arith.constant 0.0 : f32
  %e0 = tensor.empty() : tensor<70x16xf32>
  %i0 = linalg.fill ins(%zero : f32) outs(%e0 : tensor<70x16xf32>) -> tensor<70x16xf32>
  %h = linalg.contract indexing_maps = [affine_map<(m, n, k) -> (m, k)>, affine_map<(m, n, k) -> (n, k)>, affine_map<(m, n, k) -> (m, n)>]
    ins(%x, %right : tensor<70x48xf32>, tensor<16x48xf32>) outs(%i0 : tensor<70x16xf32>) -> tensor<70x16xf32> loc("model.py":3:0)
  %e1 = tensor.empty() : tensor<70x64xf32>
  %i1 = linalg.fill ins(%zero : f32) outs(%e1 : tensor<70x64xf32>) -> tensor<70x64xf32>
  %y = linalg.contract indexing_maps = [affine_map<(m, n, k) -> (m, k)>, affine_map<(m, n, k) -> (n, k)>, affine_map<(m, n, k) -> (m, n)>]
    ins(%h, %left : tensor<70x16xf32>, tensor<64x16xf32>) outs(%i1 : tensor<70x64xf32>) -> tensor<70x64xf32> loc("model.py":4:0)
  return %y : tensor<70x64xf32>
}
