// RUN: not effc-opt %s 2>&1 | filecheck %s

// CHECK: effc-opt: error: the input is not IR
// CHECK: use of undeclared SSA value name
func.func @f() -> i32 {
  return %nowhere : i32
}
