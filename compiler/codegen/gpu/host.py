"""The host's part of a GPU program, the same for all: native functions that Python calls once a call of the model.

``effc_unchanged`` is the CPU driver's. ``effc_launch(table, n, launch, stream)`` makes ``n`` launches on a stream: ``launch`` is the
driver's ``cuLaunchKernel``; an entry of the table is five 64-bit words, `LAUNCH_WORDS`. It returns 0, or, where the driver refuses entry
i, ``(i + 1) << 32`` with the driver's error code in the lower half, and launches no more.
"""

from __future__ import annotations

from effc.compiler.codegen.cpu.driver import UNCHANGED

_LAUNCH = """\
  llvm.func @effc_launch(%table: !llvm.ptr, %n: i64, %launch: !llvm.ptr, %stream: !llvm.ptr) -> i64 {
    %zero = llvm.mlir.constant(0 : i64) : i64
    %one = llvm.mlir.constant(1 : i64) : i64
    %half = llvm.mlir.constant(32 : i64) : i64
    %single = llvm.mlir.constant(1 : i32) : i32
    %fine = llvm.mlir.constant(0 : i32) : i32
    %null = llvm.mlir.zero : !llvm.ptr
    llvm.br ^head(%table, %zero : !llvm.ptr, i64)
  ^head(%entry: !llvm.ptr, %i: i64):
    %more = llvm.icmp "ult" %i, %n : i64
    llvm.cond_br %more, ^body, ^done
  ^body:
    %grid_at = llvm.getelementptr %entry[1] : (!llvm.ptr) -> !llvm.ptr, i64
    %threads_at = llvm.getelementptr %entry[2] : (!llvm.ptr) -> !llvm.ptr, i64
    %shared_at = llvm.getelementptr %entry[3] : (!llvm.ptr) -> !llvm.ptr, i64
    %parameters_at = llvm.getelementptr %entry[4] : (!llvm.ptr) -> !llvm.ptr, i64
    %next = llvm.getelementptr %entry[5] : (!llvm.ptr) -> !llvm.ptr, i64
    %kernel = llvm.load %entry : !llvm.ptr -> !llvm.ptr
    %grid = llvm.load %grid_at : !llvm.ptr -> i32
    %threads = llvm.load %threads_at : !llvm.ptr -> i32
    %shared = llvm.load %shared_at : !llvm.ptr -> i32
    %parameters = llvm.load %parameters_at : !llvm.ptr -> !llvm.ptr
    %code = llvm.call %launch(%kernel, %grid, %single, %single, %threads, %single, %single, %shared, %stream, %parameters, %null)
      : !llvm.ptr, (!llvm.ptr, i32, i32, i32, i32, i32, i32, i32, !llvm.ptr, !llvm.ptr, !llvm.ptr) -> i32
    %j = llvm.add %i, %one : i64
    %launched = llvm.icmp "eq" %code, %fine : i32
    llvm.cond_br %launched, ^head(%next, %j : !llvm.ptr, i64), ^refused
  ^refused:
    %number = llvm.shl %j, %half : i64
    %why = llvm.zext %code : i32 to i64
    %answer = llvm.or %number, %why : i64
    llvm.return %answer : i64
  ^done:
    llvm.return %zero : i64
  }
"""


def host_code() -> str:
    """MLIR text of the module that holds both."""
    return f"module {{\n{UNCHANGED}{_LAUNCH}}}\n"
