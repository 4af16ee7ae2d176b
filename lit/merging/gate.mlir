// RUN: effc-opt %s --emit kernels --target avx512 | filecheck %s
// RUN: sed s/4096/4/g %s | effc-opt - --emit kernels --target avx512 | filecheck %s --check-prefix=FEW

// A gate and what it gates, of many rows: the product is computed where one of the two contractions ends, which saves more than a call, and is a block with the ones before and after.
// CHECK-NOT: {{ and }}
// CHECK: call 0: k0 "contract+contract+mulf+contract"
// CHECK-NOT: call 1
// CHECK: kernel k0: block, d0: 4096
// CHECK: stage 0: contraction, d0: 4096, d1: 16, reduction d2: 8
// CHECK: stage 1: contraction, d0: 4096, d1: 16, reduction d2: 8
// CHECK: stage 2: contraction, d0: 4096, d1: 8, reduction d2: 16

// Of few rows: one contraction, and a kernel that multiplies its halves.
// FEW: pack_panels of input 1 and input 2
// FEW: call 0: k0 "contract"
// FEW-NEXT: call 1: k1 "mulf"
// FEW-NEXT: call 2: k2 "contract"
// FEW: kernel k0: contraction, d0: 4, d1: 32, reduction d2: 8
// FEW: kernel k1: loops
// FEW: load 0[32*d0 + d1] : f32
// FEW-NEXT: load 0[32*d0 + d1 + 16] : f32
func.func @main(%x: tensor<4096x8xf32> {effc.sizes = ["4096", "8"], effc.strides = ["8", "1"]},
                %wg: tensor<16x8xf32> {effc.sizes = ["16", "8"], effc.strides = ["8", "1"], effc.param = "gate.weight"},
                %wu: tensor<16x8xf32> {effc.sizes = ["16", "8"], effc.strides = ["8", "1"], effc.param = "up.weight"},
                %wd: tensor<8x16xf32> {effc.sizes = ["8", "16"], effc.strides = ["16", "1"], effc.param = "down.weight"})
    -> (tensor<4096x8xf32> {effc.strides = ["8", "1"]}) {
  %zero = arith.constant 0.0 : f32
  %g0 = tensor.empty() : tensor<4096x16xf32>
  %g1 = linalg.fill ins(%zero : f32) outs(%g0 : tensor<4096x16xf32>) -> tensor<4096x16xf32>
  %g = linalg.contract indexing_maps = [affine_map<(d0, d1, d2) -> (d0, d2)>, affine_map<(d0, d1, d2) -> (d1, d2)>, affine_map<(d0, d1, d2) -> (d0, d1)>]
      ins(%x, %wg : tensor<4096x8xf32>, tensor<16x8xf32>) outs(%g1 : tensor<4096x16xf32>) -> tensor<4096x16xf32>
  %u0 = tensor.empty() : tensor<4096x16xf32>
  %u1 = linalg.fill ins(%zero : f32) outs(%u0 : tensor<4096x16xf32>) -> tensor<4096x16xf32>
  %u = linalg.contract indexing_maps = [affine_map<(d0, d1, d2) -> (d0, d2)>, affine_map<(d0, d1, d2) -> (d1, d2)>, affine_map<(d0, d1, d2) -> (d0, d1)>]
      ins(%x, %wu : tensor<4096x8xf32>, tensor<16x8xf32>) outs(%u1 : tensor<4096x16xf32>) -> tensor<4096x16xf32>
  %h = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}
      ins(%g, %u : tensor<4096x16xf32>, tensor<4096x16xf32>) outs(%g0 : tensor<4096x16xf32>) {
  ^bb0(%p: f32, %f: f32, %o: f32):
    %0 = math.tanh %p : f32
    %1 = arith.mulf %0, %f : f32
    linalg.yield %1 : f32
  } -> tensor<4096x16xf32>
  %r0 = tensor.empty() : tensor<4096x8xf32>
  %r1 = linalg.fill ins(%zero : f32) outs(%r0 : tensor<4096x8xf32>) -> tensor<4096x8xf32>
  %r = linalg.contract indexing_maps = [affine_map<(d0, d1, d2) -> (d0, d2)>, affine_map<(d0, d1, d2) -> (d1, d2)>, affine_map<(d0, d1, d2) -> (d0, d1)>]
      ins(%h, %wd : tensor<4096x16xf32>, tensor<8x16xf32>) outs(%r1 : tensor<4096x8xf32>) -> tensor<4096x8xf32>
  return %r : tensor<4096x8xf32>
}
