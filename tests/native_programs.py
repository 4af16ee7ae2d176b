"""Programs small enough to write by hand, with kernels in MLIR text: what the runtime's tests run."""

from __future__ import annotations

from effc.compiler.codegen.cpu.driver import emit_driver
from effc.compiler.codegen.cpu.objects import compile_object
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.expr import Expr, as_expr
from effc.compiler.ir.program import Call, Derived, Input, Output, Pointer, Program, TensorSpec
from effc.compiler.ir.spec import Dim, Instr, KernelSpec, Operand
from effc.runtime.executable import Executable

N = as_expr("s0")


def sum_spec(count: int, message: str = "") -> KernelSpec:
    """``out[i] = in0[i] + in1[i] + …`` over s0 elements of f32; with ``message``, a check that every in0[i] >= 0."""
    operands = (*(Operand("f32", "read", N) for _ in range(count)), Operand("f32", "write", N))
    body = (Instr("check", (), "", (("message", message),)),) if message else ()
    return KernelSpec("loops", (Dim(N),), operands, body, ("s0",), (("sum", count),))


def sum_text(count: int, message: str = "") -> str:
    """MLIR of `sum_spec`; serial."""
    spec = sum_spec(count, message)
    pointers = "\n".join(
        f"  %p{k} = llvm.getelementptr %slots[{4 + k}] : (!llvm.ptr) -> !llvm.ptr, i64\n"
        f"  %b{k} = llvm.load %p{k} : !llvm.ptr -> !llvm.ptr"
        for k in range(count + 1)
    )
    adds = "\n".join(
        f"    %a{k} = llvm.getelementptr %b{k}[%i64] : (!llvm.ptr, i64) -> !llvm.ptr, f32\n"
        f"    %x{k} = llvm.load %a{k} : !llvm.ptr -> f32\n"
        f"    %t{k} = arith.addf %{'zero' if k == 0 else f't{k - 1}'}, %x{k} : f32"
        for k in range(count)
    )
    check = """
    %bad = arith.cmpf olt, %x0, %zero : f32
    scf.if %bad {
      %e0 = llvm.getelementptr %slots[2] : (!llvm.ptr) -> !llvm.ptr, i64
      %e1 = llvm.load %e0 : !llvm.ptr -> !llvm.ptr
      %first = llvm.mlir.constant(1 : i64) : i64
      llvm.store %first, %e1 : i64, !llvm.ptr
    }"""
    return f"""
func.func @k_{spec.digest()}(%slots: !llvm.ptr) {{
{pointers}
  %np = llvm.getelementptr %slots[{5 + count}] : (!llvm.ptr) -> !llvm.ptr, i64
  %n64 = llvm.load %np : !llvm.ptr -> i64
  %n = arith.index_cast %n64 : i64 to index
  %c0 = arith.constant 0 : index
  %c1 = arith.constant 1 : index
  %zero = arith.constant -0.0 : f32
  scf.for %i = %c0 to %n step %c1 {{
    %i64 = arith.index_cast %i : index to i64
{adds}{check if message else ""}
    %o = llvm.getelementptr %b{count}[%i64] : (!llvm.ptr, i64) -> !llvm.ptr, f32
    llvm.store %t{count - 1}, %o : f32, !llvm.ptr
  }}
  return
}}
"""


def vector(size: Expr = N) -> TensorSpec:
    return TensorSpec("f32", (size,), (as_expr(1),))


def at(base: str, index: int = 0, offset: str = "0") -> Pointer:
    return Pointer(base, index, as_expr(offset))


def build(program: Program, kernels: list[str], prepare: Executable | None = None) -> Executable:
    """An executable of ``program`` with kernels given as MLIR text."""
    target = Target.host()
    objects = [compile_object(text, target) for text in kernels]
    return Executable(program, objects, compile_object(emit_driver(program), target), prepare)


def sum_program(count: int = 3, message: str = "") -> Program:
    """One output: the sum of ``count`` vectors."""
    pointers = (*(at("input", k) for k in range(count)), at("output"))
    return Program(
        symbols=("s0",),
        inputs=tuple(Input(vector()) for _ in range(count)),
        outputs=(Output(vector()),),
        derived=(),
        kernels=(sum_spec(count, message),),
        calls=(Call(0, pointers, (N,), "sum", "model.py:12"),),
        arena_bytes=as_expr(0),
    )


def weighted_program(parameters: int = 2, size: int = 8) -> Program:
    """``x + copy(p0) + copy(p1) + …`` over parameters read only in a derived form."""
    fixed = as_expr(size)
    given = tuple(Input(vector(fixed), f"p{k}") for k in range(parameters))
    pointers = (at("input"), *(at("derived", k) for k in range(parameters)), at("output"))
    return Program(
        symbols=(),
        inputs=(Input(vector(fixed)), *given),
        outputs=(Output(vector(fixed)),),
        derived=tuple(Derived("contiguous", ("input", 1 + k)) for k in range(parameters)),
        kernels=(sum_spec(parameters + 1),),
        calls=(Call(0, pointers, (fixed,), "weighted sum", "model.py:3"),),
        arena_bytes=as_expr(0),
    )
