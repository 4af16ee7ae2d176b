"""Zeros around a factor that lie nowhere in memory: a left factor whose load is masked to the positions inside.

The mask of such a load is a conjunction of ``index <u size`` (one comparison as unsigned numbers for both sides), each index a sum of one
place of the window and one tap of the kernel. Products with a zero are left out: where the place is not the row of the register tile, the
loop over the taps runs over those inside; where it is, the tiles at the edges have code of their own without the products outside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from effc.compiler.codegen.cpu.contraction.rows import split
from effc.compiler.codegen.cpu.text import Builder, Value
from effc.compiler.ir.expr import Expr, const
from effc.compiler.ir.spec import KernelSpec

#: Taps along the row at most: they are written out one by one.
MOST_TAPS = 8

#: ``(row, tap)`` of the products of a register tile that lie outside.
Outside = frozenset[tuple[int, int]]


@dataclass(frozen=True)
class Border:
    """The factor is zero but where ``0 <= step * place + reach * tap + offset < size``; ``place`` and ``tap`` are dims, None where a dim
    of one element is gone.
    """

    place: int | None
    tap: int
    step: int
    reach: int
    offset: int
    size: int

    def clamp(self, b: Builder, place: Value, taps: int) -> tuple[Value, Value]:
        """First tap inside and first tap behind it, at one place; equal or reversed where none is inside."""
        start = b.add(b.mul(place, self.step), self.offset)
        low = self._taps_up_to(b, b.sub(b.index(0), start))
        high = self._taps_up_to(b, b.sub(b.index(self.size), start))
        return low, b.minimum(high, taps)

    def _taps_up_to(self, b: Builder, distance: Value) -> Value:
        return b.div(b.add(b.maximum(distance, 0), self.reach - 1), self.reach)

    def outside(self, first: int, rows: int, taps: int) -> Outside:
        """Of a tile of ``rows``; ``first``: the place of its first row."""
        return frozenset(
            (i, t)
            for i in range(rows)
            for t in range(taps)
            if not 0 <= self.step * (first + i) + self.reach * t + self.offset < self.size
        )

    def edges(self, rows: int, tallest: int, taps: int) -> tuple[dict[int, tuple[int, Outside]], list[int]]:
        """Of the tiles of ``rows`` places: ``number: (height, outside)`` of those at the edges, and the heights of all others."""
        edges, heights, number, first = dict[int, tuple[int, Outside]](), list[int](), 0, 0
        for count, height in split(rows, tallest):
            for _ in range(count):
                if out := self.outside(first, height, taps):
                    edges[number] = height, out
                elif height not in heights:
                    heights.append(height)
                number, first = number + 1, first + height
        return edges, heights


def by_edge(
    b: Builder,
    turn: Value,
    edges: Mapping[int, tuple[int, Outside]],
    tile: Callable[[int, Outside], None],
    others: Callable[[], None] | None,
) -> None:
    """``tile(height, outside)`` where ``turn`` is the number of one of ``edges``, else ``others`` (None: there are no others)."""
    if not edges:
        assert others is not None, "a contraction has rows"
        others()
        return
    (number, (height, outside)), *rest = edges.items()
    if not rest and others is None:
        tile(height, outside)
        return

    def this() -> Sequence[Value]:
        tile(height, outside)
        return []

    def further() -> Sequence[Value]:
        by_edge(b, turn, dict(rest), tile, others)
        return []

    b.choose(b.compare("arith.cmpi", "eq", turn, b.index(number)), (), this, further)


def comparisons(spec: KernelSpec, mask: int) -> tuple[int, ...] | None:
    """The instructions ``index <u size`` whose conjunction is the instruction ``mask``, or None where it is something else."""
    instr = spec.body[mask]
    if instr.op == "arith.andi":
        parts = [comparisons(spec, arg) for arg in instr.args]
        return None if None in parts else tuple(i for part in parts if part is not None for i in part)
    plain = instr.op == "arith.cmpi" and instr["predicate"] == "ult"
    return (mask,) if plain and all(spec.body[arg].op == "index" for arg in instr.args) else None


def read(
    spec: KernelSpec, masks: Sequence[int], row: int | None, column: int | None, reduction: Sequence[int], most: int
) -> tuple[Border, ...] | str:
    """The borders that the comparisons ``masks`` of a merged spec describe, or the reason why no tile leaves them out.

    ``most``: products of a sum at most; a longer one is cut into blocks.
    """
    found: list[Border] = []
    for mask in masks:
        index, size = (spec.body[arg]["expr"] for arg in spec.body[mask].args)
        border = _border(spec, index, size)
        if border is None:
            return "a border that is not of a window of known size"
        if border.tap in {other.tap for other in found} or border.place == column:
            return "a border across the columns, or two of one tap"
        if border.place is not None and border.place == row:
            taps, rows = (spec.dims[i].size.constant for i in (border.tap, row))
            if border.tap != reduction[-1] or taps is None or taps > MOST_TAPS or rows is None:
                return "a border along rows that is not of a few innermost taps"
        found.append(border)
    products = [spec.dims[k].size.constant for k in reduction]
    total = 1
    for count in products:
        total *= count or most + 1
    return tuple(found) if not found or total <= most else "a border around a long sum"


def _border(spec: KernelSpec, index: Expr, size: Expr) -> Border | None:
    dims = {int(name[1:]) for name in index.variables() if name[0] == "d"}
    taps = [i for i in dims if spec.dims[i].kind == "reduction"]
    places = [i for i in dims if spec.dims[i].kind == "parallel"]
    if len(taps) != 1 or len(places) > 1:
        return None
    factors = [index.coefficient(f"d{i}") for i in (*places, *taps)]
    numbers = [None if f is None else f.constant for f in factors]
    offset = index.substitute({f"d{i}": const(0) for i in dims}).constant
    step, reach = (numbers[0] if places else 0), numbers[-1]
    if step is None or reach is None or offset is None or size.constant is None or step < 0 or reach < 1:
        return None
    return Border(places[0] if places else None, taps[0], step, reach, offset, size.constant)
