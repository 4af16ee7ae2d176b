// RUN: effc-opt %s --locations | filecheck %s

// The user's line stays with an op through print and parse.
// CHECK: arith.negf %{{.*}} : f32 loc(#[[LINE:.*]])
// CHECK: #[[LINE]] = loc("model.py":12:3)
func.func @f(%a: f32) -> f32 {
  %0 = arith.negf %a : f32 loc("model.py":12:3)
  return %0 : f32
}
