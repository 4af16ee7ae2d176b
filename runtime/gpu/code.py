"""Compiled kernels of a GPU program, as plain data."""

from __future__ import annotations

from dataclasses import dataclass

from effc.compiler.ir.expr import Expr, const

#: Bytes to a multiple of which the memory of `KernelCode.own` is aligned: a descriptor's.
OWN_ALIGNMENT = 128


@dataclass(frozen=True)
class KernelCode:
    """One launch. ``image``: the cubin that defines ``name``. ``grid``: programs, over the spec's symbols, each of ``threads`` threads
    with ``shared`` bytes of shared memory. ``parameters``: how many the kernel takes; those beyond operands, scratch memory, error cell
    and symbols are pointers of triton's own, of which the first is to ``own`` bytes for each program, and the others are null.
    """

    name: str
    image: bytes
    grid: Expr
    threads: int
    shared: int
    parameters: int
    own: int = 0


@dataclass(frozen=True)
class SpecCode:
    """What one call of a spec launches, in order. Over the spec's symbols, ``scratch``: f32 elements that the launches share; ``numbers``:
    what must be below 2**31, as the kernels count to there by 32 bits.
    """

    launches: tuple[KernelCode, ...]
    scratch: Expr = const(0)
    numbers: tuple[Expr, ...] = ()
