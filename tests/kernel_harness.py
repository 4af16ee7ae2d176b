"""Compiles one KernelSpec and calls it on tensors: what the tests of the kernel templates share."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch

from effc.compiler.codegen.cpu.emit import emit, kernel_name
from effc.compiler.codegen.cpu.objects import compile_object
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.expr import Expr, as_expr
from effc.compiler.ir.spec import Instr, KernelSpec
from effc.runtime.elf import LoadedObject, load
from effc.runtime.threads import threads

#: Runs the kernel on tensors (one an operand), symbols and a number of threads; returns the error cell.
Kernel = Callable[..., int]


def instr(op: str, *args: int, dtype: str = "", **attributes: object) -> Instr:
    """An ``Instr``; ``address`` and ``expr`` may be text."""
    given = {k: as_expr(v) if k in ("address", "expr") and isinstance(v, str) else v for k, v in attributes.items()}
    return Instr(op, args, dtype, tuple(sorted(given.items())))


def size(expr: str) -> Expr:
    return as_expr(expr)


@lru_cache(maxsize=64)
def _loaded(spec: KernelSpec, target: Target) -> LoadedObject:
    return load(compile_object(emit(spec, target), target))


def kernel(spec: KernelSpec, target: str = "host") -> Kernel:
    """The compiled kernel of ``spec``."""
    loaded = _loaded(spec, Target.named(target))
    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(loaded.symbols[kernel_name(spec)])

    def run(tensors: Sequence[torch.Tensor], symbols: Sequence[int] = (), count: int = 1) -> int:
        assert len(tensors) == len(spec.operands)
        assert len(symbols) == len(spec.symbols)
        error = ctypes.c_int64(0)
        pool = threads()
        pointers = [t.data_ptr() for t in tensors]
        slots = [pool.gomp_parallel, pool.thread_num, ctypes.addressof(error), count, *pointers, *symbols]
        array = (ctypes.c_int64 * len(slots))(*slots)
        function(ctypes.addressof(array))
        return error.value

    run.loaded = loaded  # type: ignore[attr-defined]  # the code lives as long as the function
    return run
