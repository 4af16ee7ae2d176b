// RUN: not effc-opt %s --emit code --target sm_90 2>&1 | filecheck %s

// CHECK: no GPU kernel for template 'scan': there are loops, contraction, attention
func.func @main(%x: tensor<4x9xf32> {effc.sizes = ["4", "9"], effc.strides = ["9", "1"]}) -> (tensor<4x9xf32> {effc.strides = ["9", "1"]}) {
  %0:2 = "effc.scan"(%x) {kind = "add", dim = 1 : i64} : (tensor<4x9xf32>) -> (tensor<4x9xf32>, tensor<4x9xi64>)
  return %0#0 : tensor<4x9xf32>
}
