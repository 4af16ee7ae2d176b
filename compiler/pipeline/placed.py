"""A kernel in its place: a spec, and what its operands are in the region that it is part of."""

from __future__ import annotations

from dataclasses import dataclass

from effc.compiler.ir.expr import Expr
from effc.compiler.ir.spec import KernelSpec
from effc.compiler.pipeline.placement import Base


@dataclass(frozen=True)
class Site:
    """What an operand of a kernel points at: an offset in elements from a base."""

    base: Base
    offset: Expr
    dtype: str


@dataclass
class Kernel:
    """A spec with what its operands point at, and the values of its symbols in terms of the region's. ``convolves``: the model's op is a
    convolution.
    """

    spec: KernelSpec
    sites: tuple[Site, ...]
    symbols: tuple[Expr, ...]
    name: str
    location: str
    convolves: bool = False
