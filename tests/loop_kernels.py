"""Kernels of the ``loops`` template written by hand, compiled and run on torch tensors."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from effc.compiler.codegen.cpu.emit import emit, kernel_name
from effc.compiler.codegen.cpu.objects import compile_object
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.expr import as_expr
from effc.compiler.ir.spec import Dim, Instr, KernelSpec, Operand, Schedule
from effc.runtime import elf
from effc.runtime.threads import threads as thread_pool

NAMES = {
    torch.float32: "f32",
    torch.float64: "f64",
    torch.bfloat16: "bf16",
    torch.float16: "f16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "i8",
    torch.bool: "i1",
}


class KernelBuilder:
    """``k.load(0, "d0")``, ``k.op("arith.addf", a, b)``, ``k.store(1, "d0", v)``; each returns the instruction's index."""

    def __init__(self, dims: Sequence[tuple[int | str, str]], operands: Sequence[tuple[str, str, int | str]]) -> None:
        self.dims = tuple(Dim(as_expr(size), kind) for size, kind in dims)
        self.operands = tuple(Operand(dtype, role, as_expr(size)) for dtype, role, size in operands)
        self.body: list[Instr] = []

    def op(self, name: str, *args: int, dtype: str = "f32", **attributes: Any) -> int:
        self.body.append(Instr(name, args, dtype, tuple(sorted(attributes.items()))))
        return len(self.body) - 1

    def load(self, operand: int, address: str, *args: int) -> int:
        return self.op("load", *args, dtype=self.operands[operand].dtype, operand=operand, address=as_expr(address))

    def store(self, operand: int, address: str, value: int, *mask: int) -> int:
        return self.op("store", value, *mask, dtype="", operand=operand, address=as_expr(address))

    def constant(self, value: float | str, dtype: str = "f32") -> int:
        return self.op("constant", dtype=dtype, value=value)

    def reduce(self, kind: str, *args: int, dtype: str = "f32") -> int:
        return self.op("reduce", *args, dtype=dtype, kind=kind)

    def spec(self, symbols: Sequence[str] = (), **schedule: int) -> KernelSpec:
        chosen = Schedule(tuple(sorted(schedule.items())))
        return KernelSpec("loops", self.dims, self.operands, tuple(self.body), tuple(symbols), schedule=chosen)


class Kernel:
    """A compiled spec: ``kernel(tensors, symbols=…, threads=…)`` returns the error cell after the call."""

    def __init__(self, spec: KernelSpec, target: str = "host") -> None:
        self.text = emit(spec, Target.named(target))
        self.object = compile_object(self.text, Target.named(target))
        self.loaded = elf.load(self.object)
        self.run = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self.loaded.symbols[kernel_name(spec)])

    def __call__(self, tensors: Sequence[Tensor], symbols: Sequence[int] = (), threads: int = 1) -> int:
        pool = thread_pool()
        error = ctypes.c_int64(0)
        pointers = [t.data_ptr() for t in tensors]
        header = (pool.gomp_parallel, pool.thread_num, ctypes.addressof(error), threads)
        slots = (ctypes.c_int64 * (4 + len(pointers) + len(symbols)))(*header, *pointers, *symbols)
        self.run(ctypes.addressof(slots))
        return error.value
