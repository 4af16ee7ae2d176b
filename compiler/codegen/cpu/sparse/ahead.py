"""Fetching what the next tile of rows reads, and the lines of the result that this one writes, while its columns are summed.

Both come in bursts otherwise: a tile is transposed at once, and a group of columns is written at once, which waits for every line that is
in no cache. 3136 x 128 x 128 with 80 % zeros, whose result was in memory alone, took 0.82 of the time with it on a shared Zen 4 core; with
all in L3 nothing is gained, and in single runs up to a tenth lost.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

from effc.compiler.codegen.cpu.sparse.form import LINE
from effc.compiler.codegen.cpu.sparse.plan import Plan
from effc.compiler.codegen.cpu.text import Builder, Value
from effc.compiler.ir.spec import ITEM_SIZE

#: Bytes of the dense factor and the result from which on they are not expected in L2.
LEAST_BYTES = 256 * 1024


def pays(plan: Plan) -> bool:
    """Whether the result and the dense factor are large enough, or may be."""
    rows, outer = plan.form.rows.constant, plan.form.outer.constant
    if rows is None or outer is None:
        return True
    return ITEM_SIZE["f32"] * outer * rows * (plan.form.sum + plan.form.columns) >= LEAST_BYTES


@dataclass(frozen=True)
class Ahead:
    """``tile``: where the next tile of the dense factor begins, whose ``lines`` are contiguous. ``touch(row, column, count)``: fetches what
    the epilogue reads and writes of ``count`` of the ``rows`` of this tile, at a vector of columns.
    """

    b: Builder
    tile: Value
    lines: int
    touch: Callable[[Value, Value, int], None]
    rows: int

    def inputs(self, turn: Value, turns: int) -> None:
        """Fetch the share of the next tile that is due in turn number ``turn`` of ``turns``."""
        b, each = self.b, ceil(self.lines / turns)
        start = b.element_pointer(self.tile, b.mul(turn, each * LINE), "f32")
        for i in range(each):
            b.prefetch(b.element_pointer(start, b.index(i * LINE), "f32"))

    def results(self, column: Value, turn: Value, turns: int) -> None:
        """The share of the rows that is due in turn number ``turn`` of ``turns``, at a vector of columns from ``column`` on."""
        each = ceil(self.rows / turns)
        self.touch(self.b.mul(turn, each), column, each)
