// RUN: effc-opt %s --emit kernels --target avx512 | filecheck %s

// Many rows, and factors that L2 holds: what lies between is scratch memory of the threads.
// CHECK: call 0: k0 "contract+maximumf+contract" {{.*}} (input 0, derived 0, derived 1, output 0, arena)
// CHECK-NOT: call 1
// CHECK: kernel k0: block, d0: 3136
// CHECK-NEXT: operands: read f32, packed f32, packed f32, write f32, scratch f32
// CHECK-NEXT: stage 0: contraction, d0: 3136, d1: 24, reduction d2: 64, schedule mr=[[MR:[0-9]+]] {{.*}}order=rows
// CHECK: maximumf
// CHECK: store {{.*}} to 4[24*d0 + d1]
// CHECK-NEXT: stage 1: contraction, d0: 3136, d1: 96, reduction d2: 24, schedule mr=[[MR]] {{.*}}order=rows
// CHECK-NEXT: load 4[24*d0 + d2]
func.func @main(%x: tensor<3136x64xf32> {effc.sizes = ["3136", "64"], effc.strides = ["64", "1"]},
                %a: tensor<24x64xf32> {effc.sizes = ["24", "64"], effc.strides = ["64", "1"], effc.param = "first.weight"},
                %b: tensor<96x24xf32> {effc.sizes = ["96", "24"], effc.strides = ["24", "1"], effc.param = "second.weight"})
    -> (tensor<3136x96xf32> {effc.strides = ["96", "1"]}) {
  %zero = arith.constant 0.0 : f32
  %f0 = tensor.empty() : tensor<3136x24xf32>
  %f1 = linalg.fill ins(%zero : f32) outs(%f0 : tensor<3136x24xf32>) -> tensor<3136x24xf32>
  %f = linalg.contract indexing_maps = [affine_map<(d0, d1, d2) -> (d0, d2)>, affine_map<(d0, d1, d2) -> (d1, d2)>, affine_map<(d0, d1, d2) -> (d0, d1)>]
      ins(%x, %a : tensor<3136x64xf32>, tensor<24x64xf32>) outs(%f1 : tensor<3136x24xf32>) -> tensor<3136x24xf32>
  %g0 = tensor.empty() : tensor<3136x24xf32>
  %g = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}
      ins(%f : tensor<3136x24xf32>) outs(%g0 : tensor<3136x24xf32>) {
  ^bb0(%p: f32, %o: f32):
    %0 = arith.maximumf %p, %zero : f32
    linalg.yield %0 : f32
  } -> tensor<3136x24xf32>
  %h0 = tensor.empty() : tensor<3136x96xf32>
  %h1 = linalg.fill ins(%zero : f32) outs(%h0 : tensor<3136x96xf32>) -> tensor<3136x96xf32>
  %h = linalg.contract indexing_maps = [affine_map<(d0, d1, d2) -> (d0, d2)>, affine_map<(d0, d1, d2) -> (d1, d2)>, affine_map<(d0, d1, d2) -> (d0, d1)>]
      ins(%g, %b : tensor<3136x24xf32>, tensor<96x24xf32>) outs(%h1 : tensor<3136x96xf32>) -> tensor<3136x96xf32>
  return %h : tensor<3136x96xf32>
}
