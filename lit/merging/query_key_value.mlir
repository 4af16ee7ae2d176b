// RUN: effc-opt %s --emit kernels --target avx512 | filecheck %s

// Three layers of one activation: one contraction over weights and biases side by side, whose columns the others read in place.
// CHECK: as_is of input 2 and input 4 and input 6
// CHECK-NEXT: pack_panels of input 1 and input 3 and input 5
// CHECK: call 2:
// CHECK-NOT: call 3:
// CHECK: kernel k0: contraction, d0: 4, d1: 48, reduction d2: 8
// CHECK-NEXT: operands: read f32, packed f32, read f32, write f32
// CHECK: arith.addf
// CHECK-NEXT: store {{.*}} to 3[48*d0 + d1]
// CHECK: kernel k1: contraction, d0: 4, d1: 4, reduction d2: 16
// CHECK: load 0[48*d0 + d2]
// CHECK-NEXT: load 0[48*d1 + d2 + 16]
// CHECK: kernel k2: contraction, d0: 4, d1: 16, reduction d2: 4
// CHECK: load 1[d1 + 48*d2 + 32]
func.func @main(%x: tensor<4x8xf32> {effc.sizes = ["4", "8"], effc.strides = ["8", "1"]},
                %wq: tensor<16x8xf32> {effc.sizes = ["16", "8"], effc.strides = ["8", "1"], effc.param = "query.weight"},
                %bq: tensor<16xf32> {effc.sizes = ["16"], effc.strides = ["1"], effc.param = "query.bias"},
                %wk: tensor<16x8xf32> {effc.sizes = ["16", "8"], effc.strides = ["8", "1"], effc.param = "key.weight"},
                %bk: tensor<16xf32> {effc.sizes = ["16"], effc.strides = ["1"], effc.param = "key.bias"},
                %wv: tensor<16x8xf32> {effc.sizes = ["16", "8"], effc.strides = ["8", "1"], effc.param = "value.weight"},
                %bv: tensor<16xf32> {effc.sizes = ["16"], effc.strides = ["1"], effc.param = "value.bias"})
    -> (tensor<4x16xf32> {effc.strides = ["16", "1"]}) {
  %zero = arith.constant 0.0 : f32
  %xq0 = tensor.empty() : tensor<4x16xf32>
  %xq1 = linalg.fill ins(%zero : f32) outs(%xq0 : tensor<4x16xf32>) -> tensor<4x16xf32>
  %xq = linalg.contract indexing_maps = [affine_map<(d0, d1, d2) -> (d0, d2)>, affine_map<(d0, d1, d2) -> (d1, d2)>, affine_map<(d0, d1, d2) -> (d0, d1)>]
      ins(%x, %wq : tensor<4x8xf32>, tensor<16x8xf32>) outs(%xq1 : tensor<4x16xf32>) -> tensor<4x16xf32>
  %q = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d1)>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}
      ins(%xq, %bq : tensor<4x16xf32>, tensor<16xf32>) outs(%xq0 : tensor<4x16xf32>) {
  ^bb0(%p: f32, %f: f32, %o: f32):
    %0 = arith.addf %p, %f : f32
    linalg.yield %0 : f32
  } -> tensor<4x16xf32>
  %xk0 = tensor.empty() : tensor<4x16xf32>
  %xk1 = linalg.fill ins(%zero : f32) outs(%xk0 : tensor<4x16xf32>) -> tensor<4x16xf32>
  %xk = linalg.contract indexing_maps = [affine_map<(d0, d1, d2) -> (d0, d2)>, affine_map<(d0, d1, d2) -> (d1, d2)>, affine_map<(d0, d1, d2) -> (d0, d1)>]
      ins(%x, %wk : tensor<4x8xf32>, tensor<16x8xf32>) outs(%xk1 : tensor<4x16xf32>) -> tensor<4x16xf32>
  %k = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d1)>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}
      ins(%xk, %bk : tensor<4x16xf32>, tensor<16xf32>) outs(%xk0 : tensor<4x16xf32>) {
  ^bb0(%p: f32, %f: f32, %o: f32):
    %0 = arith.addf %p, %f : f32
    linalg.yield %0 : f32
  } -> tensor<4x16xf32>
  %xv0 = tensor.empty() : tensor<4x16xf32>
  %xv1 = linalg.fill ins(%zero : f32) outs(%xv0 : tensor<4x16xf32>) -> tensor<4x16xf32>
  %xv = linalg.contract indexing_maps = [affine_map<(d0, d1, d2) -> (d0, d2)>, affine_map<(d0, d1, d2) -> (d1, d2)>, affine_map<(d0, d1, d2) -> (d0, d1)>]
      ins(%x, %wv : tensor<4x8xf32>, tensor<16x8xf32>) outs(%xv1 : tensor<4x16xf32>) -> tensor<4x16xf32>
  %v = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d1)>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}
      ins(%xv, %bv : tensor<4x16xf32>, tensor<16xf32>) outs(%xv0 : tensor<4x16xf32>) {
  ^bb0(%p: f32, %f: f32, %o: f32):
    %0 = arith.addf %p, %f : f32
    linalg.yield %0 : f32
  } -> tensor<4x16xf32>
  %s0 = tensor.empty() : tensor<4x4xf32>
  %s1 = linalg.fill ins(%zero : f32) outs(%s0 : tensor<4x4xf32>) -> tensor<4x4xf32>
  %s = linalg.contract indexing_maps = [affine_map<(d0, d1, d2) -> (d0, d2)>, affine_map<(d0, d1, d2) -> (d1, d2)>, affine_map<(d0, d1, d2) -> (d0, d1)>]
      ins(%q, %k : tensor<4x16xf32>, tensor<4x16xf32>) outs(%s1 : tensor<4x4xf32>) -> tensor<4x4xf32>
  %r0 = tensor.empty() : tensor<4x16xf32>
  %r1 = linalg.fill ins(%zero : f32) outs(%r0 : tensor<4x16xf32>) -> tensor<4x16xf32>
  %r = linalg.contract indexing_maps = [affine_map<(d0, d1, d2) -> (d0, d2)>, affine_map<(d0, d1, d2) -> (d2, d1)>, affine_map<(d0, d1, d2) -> (d0, d1)>]
      ins(%s, %v : tensor<4x4xf32>, tensor<4x16xf32>) outs(%r1 : tensor<4x16xf32>) -> tensor<4x16xf32>
  return %r : tensor<4x16xf32>
}
