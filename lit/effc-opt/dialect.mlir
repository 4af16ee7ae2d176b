// RUN: not effc-opt %s 2>&1 | filecheck %s

// CHECK: effc-opt: error: the input of the passes is not valid: effc.argreduce at {{.*}}: attribute 'dim' is missing
func.func @f(%a: tensor<4x5xf32>) -> tensor<4xi64> {
  %0 = "effc.argreduce"(%a) {kind = "max"} : (tensor<4x5xf32>) -> tensor<4xi64>
  return %0 : tensor<4xi64>
}
