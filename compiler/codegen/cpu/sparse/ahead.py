"""Fetching what the next tile of rows reads, and the lines that this one writes, while its columns are summed.

Both come in bursts otherwise: a tile is transposed at once, and a group of columns is written at once, which waits for every line of the
result that is in no cache. On a Zen 4 core a product of 3136 x 128 x 128 with 80 % zeros then took 1.25 times what its parts take in L2.
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
    """``tile``: where the next tile of the dense factor begins, whose ``lines`` are contiguous. ``home``: where the result of a column lies
    in the first row; rows lie ``pitch`` elements apart, and there are ``rows`` of them.
    """

    b: Builder
    tile: Value
    lines: int
    home: Callable[[Value], Value]
    pitch: Value
    rows: int

    def inputs(self, turn: Value, turns: int) -> None:
        """The share of the next tile that turn number ``turn`` of ``turns`` fetches, into L2."""
        b, each = self.b, ceil(self.lines / turns)
        start = b.element_pointer(self.tile, b.mul(turn, each * LINE), "f32")
        for i in range(each):
            b.prefetch(b.element_pointer(start, b.index(i * LINE), "f32"))

    def results(self, column: Value, turn: Value, turns: int) -> None:
        """The share of the rows of a vector of columns from ``column`` on, which turn number ``turn`` of ``turns`` fetches."""
        b, each = self.b, ceil(self.rows / turns)
        start = b.element_pointer(self.home(column), b.mul(b.mul(turn, each), self.pitch), "f32")
        for i in range(each):
            b.prefetch(b.element_pointer(start, b.mul(self.pitch, i), "f32"), level=1)
