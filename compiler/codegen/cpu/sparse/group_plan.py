"""Sizes of a kernel for N:M weights: its register tile, how its factor is packed, and what it would cost.

``groups``: lanes are columns, as in the dense kernel. Of each group of M steps of the sum a lane stores N values, and beside them, in a
few bits each, their positions, by which one permutation takes the elements of the dense factor that the lanes multiply. So a 2:4 weight
of float32 takes 0.53 of the dense one's bytes, and few rows take about that much of the time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

from effc.compiler.codegen.cpu.contraction.chains import chain_length
from effc.compiler.codegen.cpu.contraction.order import L2_SHARE
from effc.compiler.codegen.cpu.contraction.rows import split
from effc.compiler.codegen.cpu.contraction.schedule import FAR_BYTES, L2_BYTES, TILE_CYCLES
from effc.compiler.codegen.cpu.sparse.count import FMAS, LATENCY, LOADS, UNKNOWN
from effc.compiler.codegen.cpu.sparse.form import Form
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.expr import Expr, as_expr, floordiv
from effc.compiler.ir.spec import ITEM_SIZE, Schedule

#: Bits of a word of positions, and bytes of a word.
WORD, WORD_BYTES = 32, 4
#: Rows of the tallest tile, and vectors of columns of a panel: four were 4 to 25 % slower than two where values come from memory.
TALLEST, WIDTHS = 8, (1, 2)


@dataclass(frozen=True)
class GroupPlan:
    """``height`` x ``vectors``: rows and vectors of columns of the register tile. ``sets``: accumulators that take turns, so that one does
    not wait for its last addition.
    """

    form: Form
    lanes: int
    height: int
    vectors: int
    sets: int

    @staticmethod
    def of(form: Form, schedule: Schedule, target: Target) -> GroupPlan:
        return GroupPlan(
            form, target.lanes(4), int(schedule["height"]), int(schedule["vectors"]), int(schedule["sets"])
        )

    @property
    def method(self) -> str:
        return "groups"

    @property
    def schedule(self) -> Schedule:
        return Schedule(
            (("height", self.height), ("sets", self.sets), ("sparse", self.method), ("vectors", self.vectors))
        )

    # -- the packed factor ------------------------------------------------------------------------------------------
    @property
    def n(self) -> int:
        return self.form.sparsity.n

    @property
    def m(self) -> int:
        return self.form.sparsity.m

    @property
    def groups(self) -> int:
        """Along the sum."""
        return self.form.sum // self.m

    @property
    def bits(self) -> int:
        """Of a position."""
        return position_bits(self.m)

    @property
    def together(self) -> int:
        """Groups whose positions fill a word."""
        return WORD // (self.bits * self.n)

    @property
    def width(self) -> int:
        """Columns of a panel."""
        return self.vectors * self.lanes

    @property
    def panels(self) -> int:
        return ceil(self.form.columns / self.width)

    @property
    def each(self) -> int:
        """Values of a word."""
        return WORD_BYTES // ITEM_SIZE[self.form.dtype]

    def run_words(self, groups: int) -> int:
        """Words of a panel that hold groups whose positions share a word: the positions, then the values."""
        return (1 + ceil(groups * self.n / self.each)) * self.width

    @property
    def panel_words(self) -> int:
        whole, rest = divmod(self.groups, self.together)
        return whole * self.run_words(self.together) + (self.run_words(rest) if rest else 0)

    @property
    def packed_elements(self) -> int:
        return self.panels * self.panel_words * self.each

    @property
    def scratch_elements(self) -> int:
        return 0

    @property
    def chain(self) -> int:
        """Words of positions whose products one chain of additions of each set takes."""
        return max(self.sets * chain_length(packed=True) // (self.together * self.n), 1)

    def derivation(self, offset: int) -> tuple[str, dict[str, object]]:
        """The function of ``runtime/derive.py`` that packs the factor, which lies at ``offset``, and its attributes."""
        return "group_panels", {
            "offset": offset,
            "sizes": self.form.sizes,
            "strides": self.form.strides,
            "group": (self.n, self.m),
            "lanes": self.lanes,
            "vectors": self.vectors,
        }

    # -- units and costs --------------------------------------------------------------------------------------------
    @property
    def tiles(self) -> Expr:
        """Tiles of rows, of one index of the outer dims."""
        return floordiv(self.form.rows + (self.height - 1), as_expr(self.height))

    @property
    def unit_cycles(self) -> int:
        return int(max(self._compute(self.height), WORD_BYTES * self.panel_words / FAR_BYTES)) + TILE_CYCLES

    @property
    def cycles(self) -> float:
        """Of the whole product on one thread: a panel comes from memory for the first tile of rows, from L2 for the others."""
        rows = self.form.rows.constant
        cut = split(UNKNOWN if rows is None else max(rows, 1), self.height)
        tiles, size = sum(count for count, _ in cut), WORD_BYTES * self.panel_words
        far = 1 if size <= L2_SHARE else tiles
        stream = far * size / FAR_BYTES + (tiles - far) * size / L2_BYTES
        compute = sum(count * self._compute(height) for count, height in cut)
        each = max(compute, stream) + min(compute, stream) / 4 + tiles * TILE_CYCLES
        return (self.form.outer.constant or 1) * (self.panels + self.panels % 2) * each  # threads are even in number

    def _compute(self, height: int) -> float:
        """Of a tile: a vector of values takes a shift, and a permutation and a multiply-add for each row, on as many ports as multiply-adds
        have; in bfloat16 another shift or mask, and the group of a row three instructions.
        """
        sums, widens = self.n * self.vectors, self.each - 1
        step = max(
            (sums * (1 + widens + 2 * height) + 3 * widens * height) / FMAS,
            (sums + height) / LOADS,
            self.n * LATENCY / self.sets,
        )
        return self.groups * step


def position_bits(m: int) -> int:
    """Of the position of an element in its group."""
    return max((m - 1).bit_length(), 1)


def group_plans(form: Form, target: Target) -> Iterator[GroupPlan]:
    """All that are worth trying; none where the groups have no kernel, or the tensors lie in another order."""
    n, m, lanes = form.sparsity.n, form.sparsity.m, target.lanes(4)
    if not n or lanes % m or n * position_bits(m) > WORD or form.sum % m:
        return
    if form.planes or form.positions or not form.by_columns:
        return
    registers, rows = 32 if target.vector_bytes == 64 else 16, form.rows.constant
    for vectors in WIDTHS:
        if vectors > 1 and vectors * lanes > form.columns:
            break
        for height in range(1, min(max(rows or TALLEST, 1), TALLEST) + 1):
            sums, beside = height * vectors, height + vectors * (1 if form.dtype == "f32" else 2) + 1
            sets = min(ceil(LATENCY * FMAS / sums), (registers - beside) // sums)
            if sets and (rows is None or height == max(h for _, h in split(max(rows, 1), height))):
                yield GroupPlan(form, lanes, height, vectors, sets)
