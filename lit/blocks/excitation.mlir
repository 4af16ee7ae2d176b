// RUN: effc-opt %s --emit kernels --target avx512 | filecheck %s

// Squeeze-excitation in two blocks. The first stores what the second scales, and each line's sum of it; then come the sum of all lines and the
// gate. The last stage of the first stands whole, the kernel has it in two steps.
// CHECK: call 0: k0 {{.*}} (input 1, derived 0, derived 1, [[STORED:arena[^,]*]], [[SUM:arena[^,]*]], arena
// CHECK: call 1: k1 {{.*}} ([[SUM]], derived 2, [[GATE:arena[^,)]*]])
// CHECK: call 2: k2 {{.*}} ([[STORED]], [[GATE]], derived 3, output 0, arena
// CHECK-NOT: call 3
// CHECK: kernel k0: block, d0: 1, d1: 112, schedule lines={{[0-9]+$}}
// CHECK-NEXT: operands: read f32, packed f32, packed f32, write f32, write f32, scratch f32, scratch f32
// CHECK-NEXT: stage 0: contraction
// CHECK: store {{.*}} to 5[
// CHECK-NEXT: stage 1: contraction
// CHECK: store {{.*}} to 3[21504*d0 + 192*d1 + d2]
// CHECK-NEXT: stage 2: loops, d0: 192, {{.*}}reduction d{{.*}}: 112, reduction d{{.*}}: 112
// CHECK-NEXT: load 3[
// CHECK: store {{.*}} to 4[d0]
// CHECK: kernel k1: contraction
// CHECK: kernel k2: block, d0: 12544
// CHECK: stage 0: loops
// CHECK: stage 1: contraction
#m0 = affine_map<(d0, d1, d2, d3, d4, d5, d6) -> (d0, d4, d2 + d5, d3 + d6)>
#m1 = affine_map<(d0, d1, d2, d3, d4, d5, d6) -> (d1, d4, d5, d6)>
#m2 = affine_map<(d0, d1, d2, d3, d4, d5, d6) -> (d0, d1, d2, d3)>
#m3 = affine_map<(d0, d1, d2, d3) -> (d0, d1, d2, d3)>
#m4 = affine_map<(d0, d1, d2, d3, d4, d5, d6, d7) -> (d0, d1, d5, d3 + d6, d4 + d7)>
#m5 = affine_map<(d0, d1, d2, d3, d4, d5, d6, d7) -> (d1, d2, d5, d6, d7)>
#m6 = affine_map<(d0, d1, d2, d3, d4, d5, d6, d7) -> (d0, d1, d2, d3, d4)>
#m7 = affine_map<(d0, d1, d2, d3) -> (d0, d1)>
#m8 = affine_map<(d0, d1) -> (d0, d1)>
#m9 = affine_map<(d0, d1, d2, d3) -> (d0, d1, 0, 0)>
func.func @main(%a0: tensor<192x16x1x1xf32> {effc.sizes = ["192", "16", "1", "1"], effc.strides = ["16", "1", "1", "1"], effc.param = "expand.weight"},
                %a1: tensor<1x16x112x112xf32> {effc.sizes = ["1", "16", "112", "112"], effc.strides = ["200704", "1", "1792", "16"]},
                %a2: tensor<192x1x3x3xf32> {effc.sizes = ["192", "1", "3", "3"], effc.strides = ["9", "9", "3", "1"], effc.param = "depthwise.weight"},
                %a3: tensor<192x192x1x1xf32> {effc.sizes = ["192", "192", "1", "1"], effc.strides = ["192", "1", "1", "1"], effc.param = "gate.weight"},
                %a4: tensor<16x192x1x1xf32> {effc.sizes = ["16", "192", "1", "1"], effc.strides = ["192", "1", "1", "1"], effc.param = "project.weight"})
    -> (tensor<1x16x112x112xf32> {effc.strides = ["200704", "1", "1792", "16"]}) {
  %c0 = arith.constant 0.0 : f32
  %c1 = arith.constant 12544 : index
  %c2 = arith.constant 1.0 : f32
  %1 = tensor.empty() : tensor<1x192x112x112xf32>
  %2 = linalg.fill ins(%c0 : f32) outs(%1 : tensor<1x192x112x112xf32>) -> tensor<1x192x112x112xf32>
  %8 = linalg.generic {indexing_maps = [#m0, #m1, #m2], iterator_types = ["parallel", "parallel", "parallel", "parallel", "reduction", "reduction", "reduction"]}
      ins(%a1,
                %a0 : tensor<1x16x112x112xf32>, tensor<192x16x1x1xf32>) outs(%2 : tensor<1x192x112x112xf32>) attrs = {effc.op = "conv"} {
  ^bb0(%3: f32, %4: f32, %5: f32):
    %6 = arith.mulf %3, %4 : f32
    %7 = arith.addf %6, %5 : f32
    linalg.yield %7 : f32
  } -> tensor<1x192x112x112xf32>
  %9 = tensor.empty() : tensor<1x192x112x112xf32>
  %14 = linalg.generic {indexing_maps = [#m3, #m3], iterator_types = ["parallel", "parallel", "parallel", "parallel"]}
      ins(%8 : tensor<1x192x112x112xf32>) outs(%9 : tensor<1x192x112x112xf32>) {
  ^bb0(%10: f32, %11: f32):
    %12 = arith.cmpf ogt, %c0, %10 : f32
    %13 = arith.select %12, %c0, %10 : f32
    linalg.yield %13 : f32
  } -> tensor<1x192x112x112xf32>
  %19 = tensor.pad %14 low[0, 0, 1, 1] high[0, 0, 1, 1] {
  ^bb0(%15: index, %16: index, %17: index, %18: index):
    tensor.yield %c0 : f32
  } : tensor<1x192x112x112xf32> to tensor<1x192x114x114xf32>
  %20 = tensor.expand_shape %19 [[0], [1], [2, 3], [4]] output_shape [1, 192, 1, 114, 114] : tensor<1x192x114x114xf32> into tensor<1x192x1x114x114xf32>
  %21 = tensor.expand_shape %a2 [[0], [1], [2, 3], [4]] output_shape [192, 1, 1, 3, 3] : tensor<192x1x3x3xf32> into tensor<192x1x1x3x3xf32>
  %22 = tensor.empty() : tensor<1x192x1x112x112xf32>
  %23 = linalg.fill ins(%c0 : f32) outs(%22 : tensor<1x192x1x112x112xf32>) -> tensor<1x192x1x112x112xf32>
  %29 = linalg.generic {indexing_maps = [#m4, #m5, #m6], iterator_types = ["parallel", "parallel", "parallel", "parallel", "parallel", "reduction", "reduction", "reduction"]}
      ins(%20, %21 : tensor<1x192x1x114x114xf32>, tensor<192x1x1x3x3xf32>) outs(%23 : tensor<1x192x1x112x112xf32>) attrs = {effc.op = "conv"} {
  ^bb0(%24: f32, %25: f32, %26: f32):
    %27 = arith.mulf %24, %25 : f32
    %28 = arith.addf %27, %26 : f32
    linalg.yield %28 : f32
  } -> tensor<1x192x1x112x112xf32>
  %30 = tensor.collapse_shape %29 [[0], [1], [2, 3], [4]] : tensor<1x192x1x112x112xf32> into tensor<1x192x112x112xf32>
  %31 = tensor.empty() : tensor<1x192xf32>
  %32 = linalg.fill ins(%c0 : f32) outs(%31 : tensor<1x192xf32>) -> tensor<1x192xf32>
  %36 = linalg.generic {indexing_maps = [#m3, #m7], iterator_types = ["parallel", "parallel", "reduction", "reduction"]}
      ins(%30 : tensor<1x192x112x112xf32>) outs(%32 : tensor<1x192xf32>) {
  ^bb0(%33: f32, %34: f32):
    %35 = arith.addf %33, %34 : f32
    linalg.yield %35 : f32
  } -> tensor<1x192xf32>
  %37 = tensor.empty() : tensor<1x192xf32>
  %43 = linalg.generic {indexing_maps = [#m8, #m8], iterator_types = ["parallel", "parallel"]}
      ins(%36 : tensor<1x192xf32>) outs(%37 : tensor<1x192xf32>) {
  ^bb0(%38: f32, %39: f32):
    %40 = arith.index_cast %c1 : index to i64
    %41 = arith.sitofp %40 : i64 to f32
    %42 = arith.divf %38, %41 : f32
    linalg.yield %42 : f32
  } -> tensor<1x192xf32>
  %44 = tensor.expand_shape %43 [[0], [1, 2, 3]] output_shape [1, 192, 1, 1] : tensor<1x192xf32> into tensor<1x192x1x1xf32>
  %45 = tensor.empty() : tensor<1x192x1x1xf32>
  %46 = linalg.fill ins(%c0 : f32) outs(%45 : tensor<1x192x1x1xf32>) -> tensor<1x192x1x1xf32>
  %52 = linalg.generic {indexing_maps = [#m0, #m1, #m2], iterator_types = ["parallel", "parallel", "parallel", "parallel", "reduction", "reduction", "reduction"]}
      ins(%44,
                %a3 : tensor<1x192x1x1xf32>, tensor<192x192x1x1xf32>) outs(%46 : tensor<1x192x1x1xf32>) attrs = {effc.op = "conv"} {
  ^bb0(%47: f32, %48: f32, %49: f32):
    %50 = arith.mulf %47, %48 : f32
    %51 = arith.addf %50, %49 : f32
    linalg.yield %51 : f32
  } -> tensor<1x192x1x1xf32>
  %53 = tensor.empty() : tensor<1x192x1x1xf32>
  %60 = linalg.generic {indexing_maps = [#m3, #m3], iterator_types = ["parallel", "parallel", "parallel", "parallel"]}
      ins(%52 : tensor<1x192x1x1xf32>) outs(%53 : tensor<1x192x1x1xf32>) {
  ^bb0(%54: f32, %55: f32):
    %56 = arith.negf %54 : f32
    %57 = math.exp %56 : f32
    %58 = arith.addf %c2, %57 : f32
    %59 = arith.divf %c2, %58 : f32
    linalg.yield %59 : f32
  } -> tensor<1x192x1x1xf32>
  %61 = tensor.empty() : tensor<1x192x112x112xf32>
  %66 = linalg.generic {indexing_maps = [#m3, #m9, #m3], iterator_types = ["parallel", "parallel", "parallel", "parallel"]}
      ins(%30, %60 : tensor<1x192x112x112xf32>, tensor<1x192x1x1xf32>) outs(%61 : tensor<1x192x112x112xf32>) {
  ^bb0(%62: f32, %63: f32, %64: f32):
    %65 = arith.mulf %62, %63 : f32
    linalg.yield %65 : f32
  } -> tensor<1x192x112x112xf32>
  %67 = tensor.empty() : tensor<1x16x112x112xf32>
  %68 = linalg.fill ins(%c0 : f32) outs(%67 : tensor<1x16x112x112xf32>) -> tensor<1x16x112x112xf32>
  %74 = linalg.generic {indexing_maps = [#m0, #m1, #m2], iterator_types = ["parallel", "parallel", "parallel", "parallel", "reduction", "reduction", "reduction"]}
      ins(%66,
                %a4 : tensor<1x192x112x112xf32>, tensor<16x192x1x1xf32>) outs(%68 : tensor<1x16x112x112xf32>) attrs = {effc.op = "conv"} {
  ^bb0(%69: f32, %70: f32, %71: f32):
    %72 = arith.mulf %69, %70 : f32
    %73 = arith.addf %72, %71 : f32
    linalg.yield %73 : f32
  } -> tensor<1x16x112x112xf32>
  return %74 : tensor<1x16x112x112xf32>
}
