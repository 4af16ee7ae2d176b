// RUN: effc-opt %s --emit kernels --target avx2 | filecheck %s

// The zeros around equal boxes are never written, and their buffers share memory; a border of ones is filled in each call.
// CHECK: program(), arena of 128 bytes, 64 of them zeroed
// CHECK: call 0: {{.*}}(input 0, arena + 4)
// CHECK-NEXT: call 1: {{.*}}(arena, output 0)
// CHECK-NEXT: call 2: {{.*}}(input 0, arena + 4)
// CHECK-NEXT: call 3: {{.*}}(arena, output 1)
// CHECK-NEXT: call 4: {{.*}}(input 0, arena + 68)
// CHECK-NEXT: call 5: {{.*}}"pad" {{.*}}(arena + 64)
// CHECK-NEXT: call 6: {{.*}}(arena + 64, output 2)
// CHECK-NOT: call 7
#id = affine_map<(d0) -> (d0)>
func.func @main(%x: tensor<6xf32> {effc.sizes = ["6"], effc.strides = ["1"]})
    -> (tensor<8xf32> {effc.strides = ["1"]}, tensor<8xf32> {effc.strides = ["1"]}, tensor<8xf32> {effc.strides = ["1"]}) {
  %zero = arith.constant 0.0 : f32
  %one = arith.constant 1.0 : f32
  %e = tensor.empty() : tensor<6xf32>
  %f = tensor.empty() : tensor<8xf32>
  %a0 = linalg.generic {indexing_maps = [#id, #id], iterator_types = ["parallel"]} ins(%x : tensor<6xf32>) outs(%e : tensor<6xf32>) {
  ^bb0(%p: f32, %o: f32):
    %0 = math.exp %p : f32
    linalg.yield %0 : f32
  } -> tensor<6xf32>
  %p0 = tensor.pad %a0 low[1] high[1] {
  ^bb0(%i: index):
    tensor.yield %zero : f32
  } : tensor<6xf32> to tensor<8xf32>
  %n0 = linalg.generic {indexing_maps = [#id, #id], iterator_types = ["parallel"]} ins(%p0 : tensor<8xf32>) outs(%f : tensor<8xf32>) {
  ^bb0(%p: f32, %o: f32):
    %0 = arith.negf %p : f32
    linalg.yield %0 : f32
  } -> tensor<8xf32>
  %a1 = linalg.generic {indexing_maps = [#id, #id], iterator_types = ["parallel"]} ins(%x : tensor<6xf32>) outs(%e : tensor<6xf32>) {
  ^bb0(%p: f32, %o: f32):
    %0 = math.sqrt %p : f32
    linalg.yield %0 : f32
  } -> tensor<6xf32>
  %p1 = tensor.pad %a1 low[1] high[1] {
  ^bb0(%i: index):
    tensor.yield %zero : f32
  } : tensor<6xf32> to tensor<8xf32>
  %n1 = linalg.generic {indexing_maps = [#id, #id], iterator_types = ["parallel"]} ins(%p1 : tensor<8xf32>) outs(%f : tensor<8xf32>) {
  ^bb0(%p: f32, %o: f32):
    %0 = arith.negf %p : f32
    linalg.yield %0 : f32
  } -> tensor<8xf32>
  %a2 = linalg.generic {indexing_maps = [#id, #id], iterator_types = ["parallel"]} ins(%x : tensor<6xf32>) outs(%e : tensor<6xf32>) {
  ^bb0(%p: f32, %o: f32):
    %0 = math.exp2 %p : f32
    linalg.yield %0 : f32
  } -> tensor<6xf32>
  %p2 = tensor.pad %a2 low[1] high[1] {
  ^bb0(%i: index):
    tensor.yield %one : f32
  } : tensor<6xf32> to tensor<8xf32>
  %n2 = linalg.generic {indexing_maps = [#id, #id], iterator_types = ["parallel"]} ins(%p2 : tensor<8xf32>) outs(%f : tensor<8xf32>) {
  ^bb0(%p: f32, %o: f32):
    %0 = arith.negf %p : f32
    linalg.yield %0 : f32
  } -> tensor<8xf32>
  return %n0, %n1, %n2 : tensor<8xf32>, tensor<8xf32>, tensor<8xf32>
}
