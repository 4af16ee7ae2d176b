"""What a spec becomes: launches in order, each one TTIR kernel. Plain data.

The arguments of every kernel are alike: a pointer for each operand of the spec, a pointer to scratch memory (f32), a pointer to the error
cell (i32: 0, or 1 + the number of the ``check`` that failed), then the spec's symbols as i32. Triton adds its own behind them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch_mlir import ir

from effc.compiler.codegen.gpu.builder import Builder, kernel_text
from effc.compiler.ir.expr import Expr, const, floordiv
from effc.compiler.ir.spec import KernelSpec

#: Bytes to which pointers are aligned where a kernel is compiled for aligned ones: a vector's.
ALIGNED = 16


@dataclass(frozen=True)
class Launch:
    """``grid``: programs, over the spec's symbols. ``warps``: of one program. ``stages``: loads in flight in its loops."""

    name: str
    text: str
    grid: Expr
    warps: int
    stages: int


@dataclass(frozen=True)
class Emitted:
    """``scratch``: f32 elements that the launches pass on to each other. ``numbers``: what must be below 2**31 when they are launched."""

    launches: tuple[Launch, ...]
    scratch: Expr = const(0)
    numbers: tuple[Expr, ...] = ()


@dataclass(frozen=True)
class Arguments:
    """A kernel's arguments, as MLIR values."""

    operands: tuple[ir.Value, ...]
    scratch: ir.Value
    error: ir.Value
    symbols: dict[str, ir.Value]


def kernel(
    spec: KernelSpec,
    name: str,
    body: Callable[[Builder, Arguments], None],
    *,
    aligned: bool,
    scratch: bool = False,
) -> str:
    """TTIR of a kernel by the convention above. ``aligned``: all operands lie at multiples of `ALIGNED` bytes. ``scratch``: the last
    operand of ``spec`` is the scratch memory.
    """
    operands = spec.operands[:-1] if scratch else spec.operands
    alignment = ALIGNED if aligned else 1
    pointers = [("i8" if o.dtype == "i1" else o.dtype, alignment) for o in operands]
    pointers += [("f32", ALIGNED), ("i32", 1)]
    count = len(operands)

    def inside(b: Builder, values: list[ir.Value]) -> None:
        symbols = dict(zip(spec.symbols, values[count + 2 :], strict=True))
        given = values[: count + 1] if scratch else values[:count]
        body(b, Arguments(tuple(given), values[count], values[count + 1], symbols))

    return kernel_text(name, pointers, len(spec.symbols), inside)


def blocks(size: Expr, block: int) -> Expr:
    """How many blocks cover ``size``."""
    return floordiv(size + (block - 1), const(block))


def power_of_two(size: Expr, least: int, most: int) -> int:
    """The least power of two from ``least`` on that covers ``size``, at most ``most``; of an unknown size ``most``."""
    if size.constant is None:
        return most
    found = 1 << max(size.constant - 1, 0).bit_length()
    return max(least, min(found, most))
