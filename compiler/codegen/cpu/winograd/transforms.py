"""The three transforms of F(2x2, 3x3) on vectors of channels, each a 1-D transform of the columns and then of the rows.

``B^T d B``, ``A^T m A`` and, for tiles whose result is not finite, the kernel's taps from its transform ``u = G g G^T``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from effc.compiler.codegen.cpu.text import Builder, Value

Grid = list[list[Value]]
Line = Callable[[Builder, Sequence[Value]], list[Value]]


def both_ways(b: Builder, grid: Grid, line: Line) -> Grid:
    """``line`` of every column, then of every row."""
    columns = [line(b, column) for column in zip(*grid, strict=True)]
    return [line(b, row) for row in zip(*columns, strict=True)]


def input_line(b: Builder, d: Sequence[Value]) -> list[Value]:
    """4 → 4."""
    return [
        b.op("arith.subf", d[0], d[2]),
        b.op("arith.addf", d[1], d[2]),
        b.op("arith.subf", d[2], d[1]),
        b.op("arith.subf", d[1], d[3]),
    ]


def output_line(b: Builder, m: Sequence[Value]) -> list[Value]:
    """4 → 2."""
    return [
        b.op("arith.addf", m[0], b.op("arith.addf", m[1], m[2])),
        b.op("arith.subf", b.op("arith.subf", m[1], m[2]), m[3]),
    ]


def kernel_line(b: Builder, u: Sequence[Value]) -> list[Value]:
    """4 → 3: the taps behind a transformed kernel (but for rounding)."""
    return [u[0], b.op("arith.subf", u[1], u[2]), u[3]]
