// RUN: not effc-opt %s -p 'no-such-pass' 2>&1 | filecheck %s --check-prefix=PASS
// RUN: not effc-opt %s -p 'mlir:no-such-pass' 2>&1 | filecheck %s --check-prefix=UPSTREAM
// RUN: not effc-opt %s -p 'mlir:cse{' 2>&1 | filecheck %s --check-prefix=BRACKET
// RUN: not effc-opt %s.missing 2>&1 | filecheck %s --check-prefix=FILE
// RUN: not effc-opt %s --emit kernels --target sm_75 2>&1 | filecheck %s --check-prefix=OLD
// RUN: not effc-opt %s --emit kernels --target sm_89+tma 2>&1 | filecheck %s --check-prefix=TMA
// RUN: not effc-opt %s --emit kernels --target avx3 2>&1 | filecheck %s --check-prefix=CPU

// PASS: effc-opt: error: no pass is named 'no-such-pass'
// UPSTREAM: effc-opt: error: 'mlir:no-such-pass' is not a pass of MLIR
// BRACKET: effc-opt: error: '{' is never closed in 'mlir:cse{'
// FILE: effc-opt: error: {{.*}}No such file
// OLD: effc-opt: error: --target: unknown GPU target 'sm_75': there are sm_80 and newer (sm_80, sm_86, sm_87, sm_89, sm_90, {{.*}})
// TMA: effc-opt: error: --target: GPU target 'sm_89+tma': copies by descriptors (TMA) begin with sm_90
// CPU: effc-opt: error: --target: unknown CPU target 'avx3'
func.func private @f()
