// RUN: effc-opt %s --emit kernels --target avx512 | filecheck %s

// Products of bytes are stages too: what lies between them is bytes.
// CHECK: call 0: k0 {{.*}} (input 0, derived 0, derived 1, output 0, arena)
// CHECK-NOT: call 1
// CHECK: kernel k0: block, d0: 12544
// CHECK-NEXT: operands: read i8, packed i8, packed i8, write f32, scratch i8
// CHECK-NEXT: stage 0: contraction, d0: 12544, d1: 24, reduction d2: 64
// CHECK: contract {{.*}} : i32
// CHECK: store {{.*}} to 4[24*d0 + d1]
// CHECK-NEXT: stage 1: contraction, d0: 12544, d1: 96, reduction d2: 24
// CHECK-NEXT: load 4[24*d0 + d2] : i8
func.func @main(%x: tensor<12544x64xi8> {effc.sizes = ["12544", "64"], effc.strides = ["64", "1"]},
                %a: tensor<24x64xi8> {effc.sizes = ["24", "64"], effc.strides = ["64", "1"], effc.param = "first.weight"},
                %b: tensor<96x24xi8> {effc.sizes = ["96", "24"], effc.strides = ["24", "1"], effc.param = "second.weight"})
    -> (tensor<12544x96xf32> {effc.strides = ["96", "1"]}) {
  %none = arith.constant 0 : i32
  %zero = arith.constant 0.0 : f32
  %most = arith.constant 255.0 : f32
  %scale = arith.constant 0.01 : f32
  %f0 = tensor.empty() : tensor<12544x24xi32>
  %f1 = linalg.fill ins(%none : i32) outs(%f0 : tensor<12544x24xi32>) -> tensor<12544x24xi32>
  %f = linalg.generic {indexing_maps = [affine_map<(d0, d1, d2) -> (d0, d2)>, affine_map<(d0, d1, d2) -> (d1, d2)>, affine_map<(d0, d1, d2) -> (d0, d1)>], iterator_types = ["parallel", "parallel", "reduction"]}
      ins(%x, %a : tensor<12544x64xi8>, tensor<24x64xi8>) outs(%f1 : tensor<12544x24xi32>) attrs = {effc.op = "contract"} {
  ^bb0(%p: i8, %q: i8, %o: i32):
    %0 = arith.extui %p : i8 to i32
    %1 = arith.extsi %q : i8 to i32
    %2 = arith.muli %0, %1 : i32
    %3 = arith.addi %2, %o : i32
    linalg.yield %3 : i32
  } -> tensor<12544x24xi32>
  %g0 = tensor.empty() : tensor<12544x24xi8>
  %g = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}
      ins(%f : tensor<12544x24xi32>) outs(%g0 : tensor<12544x24xi8>) {
  ^bb0(%p: i32, %o: i8):
    %0 = arith.sitofp %p : i32 to f32
    %1 = arith.mulf %0, %scale : f32
    %2 = arith.maximumf %1, %zero : f32
    %3 = arith.minimumf %2, %most : f32
    %4 = arith.fptosi %3 : f32 to i32
    %5 = arith.trunci %4 : i32 to i8
    linalg.yield %5 : i8
  } -> tensor<12544x24xi8>
  %h0 = tensor.empty() : tensor<12544x96xi32>
  %h1 = linalg.fill ins(%none : i32) outs(%h0 : tensor<12544x96xi32>) -> tensor<12544x96xi32>
  %h = linalg.generic {indexing_maps = [affine_map<(d0, d1, d2) -> (d0, d2)>, affine_map<(d0, d1, d2) -> (d1, d2)>, affine_map<(d0, d1, d2) -> (d0, d1)>], iterator_types = ["parallel", "parallel", "reduction"]}
      ins(%g, %b : tensor<12544x24xi8>, tensor<96x24xi8>) outs(%h1 : tensor<12544x96xi32>) attrs = {effc.op = "contract"} {
  ^bb0(%p: i8, %q: i8, %o: i32):
    %0 = arith.extui %p : i8 to i32
    %1 = arith.extsi %q : i8 to i32
    %2 = arith.muli %0, %1 : i32
    %3 = arith.addi %2, %o : i32
    linalg.yield %3 : i32
  } -> tensor<12544x96xi32>
  %i0 = tensor.empty() : tensor<12544x96xf32>
  %i = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0, d1)>], iterator_types = ["parallel", "parallel"]}
      ins(%h : tensor<12544x96xi32>) outs(%i0 : tensor<12544x96xf32>) {
  ^bb0(%p: i32, %o: f32):
    %0 = arith.sitofp %p : i32 to f32
    %1 = arith.mulf %0, %scale : f32
    linalg.yield %1 : f32
  } -> tensor<12544x96xf32>
  return %i : tensor<12544x96xf32>
}
