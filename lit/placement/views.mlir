// RUN: effc-opt %s --emit kernels --target avx2 | filecheck %s

// A transposed slice is an address, not a copy: the kernel reads the input where it lies, from row 1 on, down its columns.
// CHECK: program(), arena of 0 bytes
// CHECK: call 0: k0
// CHECK-NOT: call 1
// CHECK: kernel k0: loops, d0: 4, d1: 2
// CHECK: v0 = load 0[d0 + 4*d1 + 4] : f32
#all = affine_map<(d0, d1) -> (d0, d1)>
func.func @main(%x: tensor<3x4xf32> {effc.sizes = ["3", "4"], effc.strides = ["4", "1"]})
    -> (tensor<4x2xf32> {effc.strides = ["2", "1"]}) {
  %s = tensor.extract_slice %x[1, 0] [2, 4] [1, 1] : tensor<3x4xf32> to tensor<2x4xf32>
  %e = tensor.empty() : tensor<4x2xf32>
  %t = linalg.transpose ins(%s : tensor<2x4xf32>) outs(%e : tensor<4x2xf32>) permutation = [1, 0]
  %n = linalg.generic {indexing_maps = [#all, #all], iterator_types = ["parallel", "parallel"]}
      ins(%t : tensor<4x2xf32>) outs(%e : tensor<4x2xf32>) {
  ^bb0(%p: f32, %o: f32):
    %0 = arith.negf %p : f32
    linalg.yield %0 : f32
  } -> tensor<4x2xf32>
  return %n : tensor<4x2xf32>
}
