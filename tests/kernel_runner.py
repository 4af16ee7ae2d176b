"""Compiles one kernel spec and calls it on tensors, as the driver of a program does."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch

from effc.compiler.codegen.cpu.emit import emit, kernel_name
from effc.compiler.codegen.cpu.objects import compile_object
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.spec import KernelSpec
from effc.runtime.elf import load
from effc.runtime.threads import threads

HOST = Target.host()


class KernelRunner:
    """A compiled kernel. Calling it with the operands' tensors (their first elements are the base pointers) runs it."""

    def __init__(self, spec: KernelSpec, target: Target = HOST) -> None:
        self.spec = spec
        self._object = load(compile_object(emit(spec, target), target))
        self._function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self._object.symbols[kernel_name(spec)])

    def __call__(self, tensors: Sequence[torch.Tensor], symbols: Sequence[int] = (), count: int = 1) -> int:
        """The value of the error cell after the call; ``count``: threads."""
        pool, error = threads(), ctypes.c_int64(0)
        assert count == 1 or pool.gomp_parallel, pool.why_serial()
        header = [pool.gomp_parallel, pool.thread_num, ctypes.addressof(error), count]
        slots = [*header, *(t.data_ptr() for t in tensors), *symbols]
        self._function((ctypes.c_int64 * len(slots))(*slots))
        return error.value
