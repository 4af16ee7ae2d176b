// RUN: effc-opt %s --emit kernels --target avx512 | filecheck %s

// A line of all channels does not fit L2, of a slice of them it does: the last product adds the slices up.
// CHECK: call 0: k0 {{.*}} (input 0, derived 0, derived 1, derived 2, output 0, arena, arena
// CHECK-NOT: call 1
// CHECK: kernel k0: block, {{.*}}d1: 112, schedule lines={{[0-9]+}} slices={{[0-9]+}}
// CHECK-NEXT: operands: read f32, packed f32, packed f32, packed f32, write f32, scratch f32, scratch f32
func.func @main(%x: tensor<1x64x112x112xf32> {effc.sizes = ["1", "64", "112", "112"], effc.strides = ["802816", "1", "7168", "64"]},
                %a: tensor<384x64x1x1xf32> {effc.sizes = ["384", "64", "1", "1"], effc.strides = ["64", "1", "1", "1"], effc.param = "expand.weight"},
                %b: tensor<384x1x3x3xf32> {effc.sizes = ["384", "1", "3", "3"], effc.strides = ["9", "9", "3", "1"], effc.param = "depthwise.weight"},
                %c: tensor<24x384x1x1xf32> {effc.sizes = ["24", "384", "1", "1"], effc.strides = ["384", "1", "1", "1"], effc.param = "project.weight"})
    -> (tensor<1x24x112x112xf32> {effc.strides = ["301056", "1", "2688", "24"]}) {
  %zero = arith.constant 0.0 : f32
  %e0 = tensor.empty() : tensor<1x384x112x112xf32>
  %e1 = linalg.fill ins(%zero : f32) outs(%e0 : tensor<1x384x112x112xf32>) -> tensor<1x384x112x112xf32>
  %e = linalg.generic {indexing_maps = [affine_map<(d0, d1, d2, d3, d4, d5, d6) -> (d0, d4, d2 + d5, d3 + d6)>, affine_map<(d0, d1, d2, d3, d4, d5, d6) -> (d1, d4, d5, d6)>,
      affine_map<(d0, d1, d2, d3, d4, d5, d6) -> (d0, d1, d2, d3)>], iterator_types = ["parallel", "parallel", "parallel", "parallel", "reduction", "reduction", "reduction"]}
      ins(%x, %a : tensor<1x64x112x112xf32>, tensor<384x64x1x1xf32>) outs(%e1 : tensor<1x384x112x112xf32>) attrs = {effc.op = "conv"} {
  ^bb0(%p: f32, %q: f32, %o: f32):
    %0 = arith.mulf %p, %q : f32
    %1 = arith.addf %0, %o : f32
    linalg.yield %1 : f32
  } -> tensor<1x384x112x112xf32>
  %f0 = tensor.empty() : tensor<1x384x112x112xf32>
  %f = linalg.generic {indexing_maps = [affine_map<(d0, d1, d2, d3) -> (d0, d1, d2, d3)>, affine_map<(d0, d1, d2, d3) -> (d0, d1, d2, d3)>], iterator_types = ["parallel", "parallel", "parallel", "parallel"]}
      ins(%e : tensor<1x384x112x112xf32>) outs(%f0 : tensor<1x384x112x112xf32>) {
  ^bb0(%p: f32, %o: f32):
    %0 = arith.maximumf %p, %zero : f32
    linalg.yield %0 : f32
  } -> tensor<1x384x112x112xf32>
  %g = tensor.pad %f low[0, 0, 1, 1] high[0, 0, 1, 1] {
  ^bb0(%i: index, %j: index, %k: index, %l: index):
    tensor.yield %zero : f32
  } : tensor<1x384x112x112xf32> to tensor<1x384x114x114xf32>
  %h0 = tensor.empty() : tensor<1x384x112x112xf32>
  %h1 = linalg.fill ins(%zero : f32) outs(%h0 : tensor<1x384x112x112xf32>) -> tensor<1x384x112x112xf32>
  %h = linalg.generic {indexing_maps = [affine_map<(d0, d1, d2, d3, d4, d5, d6) -> (d0, d1 + d4, d2 + d5, d3 + d6)>, affine_map<(d0, d1, d2, d3, d4, d5, d6) -> (d1, d4, d5, d6)>,
      affine_map<(d0, d1, d2, d3, d4, d5, d6) -> (d0, d1, d2, d3)>], iterator_types = ["parallel", "parallel", "parallel", "parallel", "reduction", "reduction", "reduction"]}
      ins(%g, %b : tensor<1x384x114x114xf32>, tensor<384x1x3x3xf32>) outs(%h1 : tensor<1x384x112x112xf32>) attrs = {effc.op = "conv"} {
  ^bb0(%p: f32, %q: f32, %o: f32):
    %0 = arith.mulf %p, %q : f32
    %1 = arith.addf %0, %o : f32
    linalg.yield %1 : f32
  } -> tensor<1x384x112x112xf32>
  %i0 = tensor.empty() : tensor<1x384x112x112xf32>
  %i = linalg.generic {indexing_maps = [affine_map<(d0, d1, d2, d3) -> (d0, d1, d2, d3)>, affine_map<(d0, d1, d2, d3) -> (d0, d1, d2, d3)>], iterator_types = ["parallel", "parallel", "parallel", "parallel"]}
      ins(%h : tensor<1x384x112x112xf32>) outs(%i0 : tensor<1x384x112x112xf32>) {
  ^bb0(%p: f32, %o: f32):
    %0 = arith.maximumf %p, %zero : f32
    linalg.yield %0 : f32
  } -> tensor<1x384x112x112xf32>
  %m0 = tensor.empty() : tensor<1x24x112x112xf32>
  %m1 = linalg.fill ins(%zero : f32) outs(%m0 : tensor<1x24x112x112xf32>) -> tensor<1x24x112x112xf32>
  %m = linalg.generic {indexing_maps = [affine_map<(d0, d1, d2, d3, d4, d5, d6) -> (d0, d4, d2 + d5, d3 + d6)>, affine_map<(d0, d1, d2, d3, d4, d5, d6) -> (d1, d4, d5, d6)>,
      affine_map<(d0, d1, d2, d3, d4, d5, d6) -> (d0, d1, d2, d3)>], iterator_types = ["parallel", "parallel", "parallel", "parallel", "reduction", "reduction", "reduction"]}
      ins(%i, %c : tensor<1x384x112x112xf32>, tensor<24x384x1x1xf32>) outs(%m1 : tensor<1x24x112x112xf32>) attrs = {effc.op = "conv"} {
  ^bb0(%p: f32, %q: f32, %o: f32):
    %0 = arith.mulf %p, %q : f32
    %1 = arith.addf %0, %o : f32
    linalg.yield %1 : f32
  } -> tensor<1x24x112x112xf32>
  return %m : tensor<1x24x112x112xf32>
}
