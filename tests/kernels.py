"""Kernels whose specs are written by hand: compiled, and called on tensors as a program's driver calls them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch

from effc.compiler.codegen.cpu.emit import emit, kernel_name
from effc.compiler.codegen.cpu.objects import compile_object
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.expr import as_expr
from effc.compiler.ir.spec import Dim, Instr, KernelSpec, Operand, Schedule
from effc.runtime import elf
from effc.runtime.threads import threads as thread_pool

HOST = Target.host()

Rewrite = Callable[[str], str]


@lru_cache(maxsize=64)
def _compiled(spec: KernelSpec, target: Target, rewrite: Rewrite | None) -> tuple[str, bytes, elf.LoadedObject]:
    text = emit(spec, target)
    code = compile_object(rewrite(text) if rewrite else text, target)
    return text, code, elf.load(code)


class Kernel:
    """``spec`` compiled for ``target``, which may be named. ``text``: its MLIR; ``object``: the ELF file. ``rewrite``: of the text
    before it is compiled.
    """

    def __init__(self, spec: KernelSpec, target: Target | str = HOST, rewrite: Rewrite | None = None) -> None:
        self.spec = spec
        chosen = Target.named(target) if isinstance(target, str) else target
        self.text, self.object, self._loaded = _compiled(spec, chosen, rewrite)
        self._function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self._loaded.symbols[kernel_name(spec)])

    def __call__(self, tensors: Sequence[torch.Tensor], symbols: Sequence[int] = (), threads: int = 1) -> int:
        """The value of the error cell after the call. A tensor an operand, whose first element is its base."""
        assert len(tensors) == len(self.spec.operands)
        assert len(symbols) == len(self.spec.symbols)
        pool, error = thread_pool(), ctypes.c_int64(0)
        assert threads == 1 or pool.gomp_parallel, pool.why_serial()
        header = (pool.gomp_parallel, pool.thread_num, ctypes.addressof(error), threads)
        slots = [*header, *(t.data_ptr() for t in tensors), *symbols]
        self._function((ctypes.c_int64 * len(slots))(*slots))
        return error.value


def instr(op: str, *args: int, dtype: str = "", **attributes: object) -> Instr:
    """An ``Instr``; ``address`` and ``expr`` may be text."""
    given = {k: as_expr(v) if k in ("address", "expr") and isinstance(v, str) else v for k, v in attributes.items()}
    return Instr(op, args, dtype, tuple(sorted(given.items())))


class LoopsBuilder:
    """A spec of the ``loops`` template: ``k.load(0, "d0")``, ``k.op("arith.addf", a, b)``, ``k.store(1, "d0", v)``; each
    returns the instruction's index.
    """

    def __init__(self, dims: Sequence[tuple[int | str, str]], operands: Sequence[tuple[str, str, int | str]]) -> None:
        self.dims = tuple(Dim(as_expr(size), kind) for size, kind in dims)
        self.operands = tuple(Operand(dtype, role, as_expr(size)) for dtype, role, size in operands)
        self.body: list[Instr] = []

    def op(self, name: str, *args: int, dtype: str = "f32", **attributes: object) -> int:
        self.body.append(instr(name, *args, dtype=dtype, **attributes))
        return len(self.body) - 1

    def load(self, operand: int, address: str, *args: int) -> int:
        return self.op("load", *args, dtype=self.operands[operand].dtype, operand=operand, address=address)

    def store(self, operand: int, address: str, value: int, *mask: int) -> int:
        return self.op("store", value, *mask, dtype="", operand=operand, address=address)

    def constant(self, value: float | str, dtype: str = "f32") -> int:
        return self.op("constant", dtype=dtype, value=value)

    def reduce(self, kind: str, *args: int, dtype: str = "f32") -> int:
        return self.op("reduce", *args, dtype=dtype, kind=kind)

    def spec(self, symbols: Sequence[str] = (), **schedule: int) -> KernelSpec:
        chosen = Schedule(tuple(sorted(schedule.items())))
        return KernelSpec("loops", self.dims, self.operands, tuple(self.body), tuple(symbols), schedule=chosen)
