"""The fixed pieces of work that tell whether the machine does something else: one of arithmetic, one of memory, on the same threads."""

from __future__ import annotations

from functools import partial

import torch

from effc.collecting.native import Cursor, Timed
from effc.collecting.windows import Reference
from effc.compiler.build import objects
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.expr import const, var
from effc.compiler.ir.spec import Dim, Instr, KernelSpec, Operand
from effc.compiler.toolchain import toolchain
from effc.runtime.cache import Cache
from effc.runtime.elf import load

#: Elements: of the arithmetic, in L1 and L2; and of the sum, beyond L2, where neighbours on the machine are felt.
_SMALL, _LARGE = 1 << 15, 1 << 21
#: How much slower than its best time a piece may be.
_ARITHMETIC, _MEMORY = 1.15, 1.4
#: Calls of either, some 100 us: so that a thread that wakes late is no contamination.
_CALLS = (8, 3)


def reference(cache: Cache | None, threads: int) -> Reference:
    """Both, compiled for this machine."""
    pieces = []
    for spec, limit, calls in zip((_functions(), _sum()), (_ARITHMETIC, _MEMORY), _CALLS, strict=True):
        found, _ = objects({spec.digest(): spec}, Target.host(), cache, toolchain())
        memory = [[torch.rand(operand.size.constant or 1)] for operand in spec.operands]
        timed = Timed(load(found[spec.digest()]), spec, memory, (), threads, Cursor())
        pieces.append((partial(_warm, timed, calls), limit))
    return Reference(pieces)


def _warm(timed: Timed, calls: int, times: int) -> float:
    """Once untimed: what is measured has displaced the operands and the code from the caches."""
    timed.run(1)
    return timed.run(times * calls)


def _functions() -> KernelSpec:
    """``tanh`` of ``tanh`` of ``tanh`` of each element."""
    address = ("address", var("d0"))
    body = (
        Instr("load", (), "f32", (address, ("operand", 0))),
        *(Instr("math.tanh", (i,), "f32") for i in range(3)),
        Instr("store", (3,), "", (address, ("operand", 1))),
    )
    operands = tuple(Operand("f32", role, const(_SMALL)) for role in ("read", "write"))
    return KernelSpec("loops", (Dim(const(_SMALL)),), operands, body)


def _sum() -> KernelSpec:
    """Of all elements."""
    body = (
        Instr("load", (), "f32", (("address", var("d0")), ("operand", 0))),
        Instr("reduce", (0,), "f32", (("kind", "add"),)),
        Instr("store", (1,), "", (("address", const(0)), ("operand", 1))),
    )
    operands = (Operand("f32", "read", const(_LARGE)), Operand("f32", "write", const(1)))
    return KernelSpec("loops", (Dim(const(_LARGE), "reduction"),), operands, body)
