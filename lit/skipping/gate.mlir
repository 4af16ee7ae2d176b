// RUN: effc-opt %s --emit kernels --target avx512 | filecheck %s
// RUN: sed s/1x/4x/g %s | sed 's/"1", "/"4", "/g' | effc-opt - --emit kernels --target avx512 | filecheck %s --check-prefix=SEVERAL
// RUN: effc-opt %s --emit kernels --target avx2 | filecheck %s --check-prefix=AVX2

// A gate below a threshold makes zeros of the results beside it, whatever these are: their sums are not made, and what stands for them in the
// last weight is not read. The two contractions of one activation are not merged, for one waits for the other.
// CHECK-NOT: {{ and }}
// CHECK: derived 3: not_finite of input 3
// CHECK: call 0: k0 "contract+cmpf"
// CHECK-NEXT: call 1: k1 "contract+select"
// CHECK-NEXT: call 2: k2 "contract"
// CHECK: kernel k0: {{.*}} schedule mr=1
// CHECK: kernel k1: contraction, d0: 320, d1: 1, reduction d2: 256, schedule skip=outputs width=160
// CHECK: kernel k2: contraction, d0: 256, d1: 1, reduction d2: 320, zeros=[0], schedule skip=inputs width=128
// CHECK-NEXT: operands: read f32, packed f32, write f32, packed f32

// Several rows have zeros in several places.
// SEVERAL-NOT: skip=

// Lists are compressed by AVX-512.
// AVX2-NOT: skip=
func.func @main(%x: tensor<1x256xf32> {effc.sizes = ["1", "256"], effc.strides = ["256", "1"]},
                %wg: tensor<320x256xf32> {effc.sizes = ["320", "256"], effc.strides = ["256", "1"], effc.param = "gate.weight"},
                %wu: tensor<320x256xf32> {effc.sizes = ["320", "256"], effc.strides = ["256", "1"], effc.param = "up.weight"},
                %wd: tensor<256x320xf32> {effc.sizes = ["256", "320"], effc.strides = ["320", "1"], effc.param = "down.weight"})
    -> (tensor<1x256xf32> {effc.strides = ["256", "1"]}) {
  %zero = arith.constant 0.0 : f32
  %limit = arith.constant 0.5 : f32
  %g0 = tensor.empty() : tensor<1x320xf32>
  %g1 = linalg.fill ins(%zero : f32) outs(%g0 : tensor<1x320xf32>) -> tensor<1x320xf32>
  %g = linalg.contract indexing_maps = [affine_map<(d0, d1, d2) -> (d0, d2)>, affine_map<(d0, d1, d2) -> (d1, d2)>, affine_map<(d0, d1, d2) -> (d0, d1)>]
      ins(%x, %wg : tensor<1x256xf32>, tensor<320x256xf32>) outs(%g1 : tensor<1x320xf32>) -> tensor<1x320xf32>
  %m0 = tensor.empty() : tensor<1x320xi1>
  %m = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}
      ins(%g : tensor<1x320xf32>) outs(%m0 : tensor<1x320xi1>) {
  ^bb0(%p: f32, %o: i1):
    %0 = math.absf %p : f32
    %1 = arith.cmpf ole, %0, %limit : f32
    linalg.yield %1 : i1
  } -> tensor<1x320xi1>
  %u = linalg.contract indexing_maps = [affine_map<(d0, d1, d2) -> (d0, d2)>, affine_map<(d0, d1, d2) -> (d1, d2)>, affine_map<(d0, d1, d2) -> (d0, d1)>]
      ins(%x, %wu : tensor<1x256xf32>, tensor<320x256xf32>) outs(%g1 : tensor<1x320xf32>) -> tensor<1x320xf32>
  %h = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}
      ins(%m, %g, %u : tensor<1x320xi1>, tensor<1x320xf32>, tensor<1x320xf32>) outs(%g0 : tensor<1x320xf32>) {
  ^bb0(%c: i1, %p: f32, %f: f32, %o: f32):
    %0 = arith.mulf %p, %f : f32
    %1 = arith.select %c, %zero, %0 : f32
    linalg.yield %1 : f32
  } -> tensor<1x320xf32>
  %r0 = tensor.empty() : tensor<1x256xf32>
  %r1 = linalg.fill ins(%zero : f32) outs(%r0 : tensor<1x256xf32>) -> tensor<1x256xf32>
  %r = linalg.contract indexing_maps = [affine_map<(d0, d1, d2) -> (d0, d2)>, affine_map<(d0, d1, d2) -> (d1, d2)>, affine_map<(d0, d1, d2) -> (d0, d1)>]
      ins(%h, %wd : tensor<1x320xf32>, tensor<256x320xf32>) outs(%r1 : tensor<1x256xf32>) -> tensor<1x256xf32>
  return %r : tensor<1x256xf32>
}
