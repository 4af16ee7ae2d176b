// RUN: effc-opt %s --emit kernels --target avx512 | filecheck %s

// A gate and the product behind it are a block. A further product that this one writes little for would save next to nothing.
// CHECK: call 0: k0 "mulf+contract"
// CHECK: call 1: k1 "contract" {{.*}} output 0)
// CHECK-NOT: call 2
// CHECK: kernel k0: block, d0: 3136
// CHECK: stage 0: loops
// CHECK: stage 1: contraction
// CHECK-NOT: stage 2
// CHECK: kernel k1: contraction
func.func @main(%x: tensor<3136x288xf32> {effc.sizes = ["3136", "288"], effc.strides = ["288", "1"]},
                %gate: tensor<288xf32> {effc.sizes = ["288"], effc.strides = ["1"]},
                %a: tensor<24x288xf32> {effc.sizes = ["24", "288"], effc.strides = ["288", "1"], effc.param = "narrow.weight"},
                %b: tensor<144x24xf32> {effc.sizes = ["144", "24"], effc.strides = ["24", "1"], effc.param = "wide.weight"})
    -> (tensor<3136x144xf32> {effc.strides = ["144", "1"]}) {
  %zero = arith.constant 0.0 : f32
  %s0 = tensor.empty() : tensor<3136x288xf32>
  %s = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d1)>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}
      ins(%x, %gate : tensor<3136x288xf32>, tensor<288xf32>) outs(%s0 : tensor<3136x288xf32>) {
  ^bb0(%p: f32, %q: f32, %o: f32):
    %0 = arith.mulf %p, %q : f32
    linalg.yield %0 : f32
  } -> tensor<3136x288xf32>
  %f0 = tensor.empty() : tensor<3136x24xf32>
  %f1 = linalg.fill ins(%zero : f32) outs(%f0 : tensor<3136x24xf32>) -> tensor<3136x24xf32>
  %f = linalg.contract indexing_maps = [affine_map<(d0, d1, d2) -> (d0, d2)>, affine_map<(d0, d1, d2) -> (d1, d2)>, affine_map<(d0, d1, d2) -> (d0, d1)>]
      ins(%s, %a : tensor<3136x288xf32>, tensor<24x288xf32>) outs(%f1 : tensor<3136x24xf32>) -> tensor<3136x24xf32>
  %h0 = tensor.empty() : tensor<3136x144xf32>
  %h1 = linalg.fill ins(%zero : f32) outs(%h0 : tensor<3136x144xf32>) -> tensor<3136x144xf32>
  %h = linalg.contract indexing_maps = [affine_map<(d0, d1, d2) -> (d0, d2)>, affine_map<(d0, d1, d2) -> (d1, d2)>, affine_map<(d0, d1, d2) -> (d0, d1)>]
      ins(%f, %b : tensor<3136x24xf32>, tensor<144x24xf32>) outs(%h1 : tensor<3136x144xf32>) -> tensor<3136x144xf32>
  return %h : tensor<3136x144xf32>
}
