// RUN: effc-opt %s -p 'mlir:func.func(canonicalize),mlir:cse' | filecheck %s

// Adding zero goes, and the two equal products become one.
// CHECK-LABEL: func.func @f(
// CHECK-SAME: %[[A:.*]]: i32)
// CHECK-NEXT: %[[P:.*]] = arith.muli %[[A]], %[[A]] : i32
// CHECK-NEXT: %[[S:.*]] = arith.addi %[[P]], %[[P]] : i32
// CHECK-NEXT: return %[[S]] : i32
func.func @f(%a: i32) -> i32 {
  %zero = arith.constant 0 : i32
  %b = arith.addi %a, %zero : i32
  %p = arith.muli %b, %a : i32
  %q = arith.muli %a, %b : i32
  %s = arith.addi %p, %q : i32
  return %s : i32
}
