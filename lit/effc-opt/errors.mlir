// RUN: not effc-opt %s -p 'no-such-pass' 2>&1 | filecheck %s --check-prefix=PASS
// RUN: not effc-opt %s -p 'mlir:no-such-pass' 2>&1 | filecheck %s --check-prefix=UPSTREAM
// RUN: not effc-opt %s -p 'mlir:cse{' 2>&1 | filecheck %s --check-prefix=BRACKET
// RUN: not effc-opt %s.missing 2>&1 | filecheck %s --check-prefix=FILE

// PASS: effc-opt: error: no pass is named 'no-such-pass'
// UPSTREAM: effc-opt: error: 'mlir:no-such-pass' is not a pass of MLIR
// BRACKET: effc-opt: error: '{' is never closed in 'mlir:cse{'
// FILE: effc-opt: error: {{.*}}No such file
func.func private @f()
