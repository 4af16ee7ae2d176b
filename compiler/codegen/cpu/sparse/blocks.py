"""Lanes are rows, and a vector of them of a whole block of the sum stays in registers while the columns that store it pass.

A stored element is then the only thing that a multiply-add loads; the sums of a column move once a block.
"""

from __future__ import annotations

from collections.abc import Sequence

from effc.compiler.codegen.cpu.body import Body
from effc.compiler.codegen.cpu.contraction.chains import chain_length, longest
from effc.compiler.codegen.cpu.sparse.ahead import Ahead
from effc.compiler.codegen.cpu.sparse.early import Early
from effc.compiler.codegen.cpu.sparse.rows import RowsKernel, Run, Tile, Write
from effc.compiler.codegen.cpu.sparse.walk import vector_at
from effc.compiler.codegen.cpu.sums import added
from effc.compiler.codegen.cpu.text import Value, split_type


class BlocksKernel(RowsKernel):
    """Each part of the sum is one column of blocks; its lists say the rows of blocks that store one."""

    def _early(self, body: Body) -> Early | None:
        """Sums grow where they wait."""
        return None

    def _shares(self, outer: dict[str, Value], first: Value, shares: tuple[Value, Value]) -> None:
        """One after the other: their sums stay in the first-level cache."""
        with self.b.loop(*shares) as loop:
            self.number = loop.index
            self._unit(outer, first, self.stored.run(loop.index, self.b.add(loop.index, 1)))

    def _wait(self, tile: Tile, run: Run, waiting: Value, write: Write, ahead: Ahead | None = None) -> None:
        b, plan, form, lanes, vectors = self.b, self.plan, self.form, self.plan.lanes, len(tile.widths)
        zero = b.constant(0, "f32", lanes)
        columns = b.mul(b.sub(run[1], run[0]), form.sparsity.rows)
        with b.loop(b.index(0), columns) as loop:
            if ahead is not None:
                inside = b.rem(loop.index, lanes)
                column = b.add(b.mul(run[0], form.sparsity.rows), b.sub(loop.index, inside))
                ahead.results(column, inside, lanes)
            line = b.element_pointer(waiting, b.mul(loop.index, plan.tile_rows), "f32")
            for v in range(vectors):
                b.store(zero, b.element_pointer(line, b.index(v * lanes), "f32"))
        same = vectors if tile.mask is None and tile.widths[-1] == lanes else vectors - 1
        with b.loop(b.index(0), b.index(plan.parts)) as part:
            number = b.add(b.mul(self.number, plan.parts), part.index)
            if ahead is not None:
                ahead.inputs(number, plan.parts * plan.shares)
            blocks = self.stored.blocks(number, b.add(number, 1))
            k = b.minimum(b.mul(part.index, form.sparsity.columns), form.sum - form.sparsity.columns)
            left = b.element_pointer(tile.base, b.mul(k, tile.step), "f32")

            def add(inside: Value, width: int, mask: Value | None, left: Value = left, blocks: Run = blocks) -> None:
                columns = [b.element_pointer(left, b.mul(tile.step, c), "f32") for c in range(form.sparsity.columns)]
                rows = [vector_at(b, b.element_pointer(p, inside, "f32"), width, mask) for p in columns]
                self._add(rows, blocks, b.element_pointer(waiting, inside, "f32"))

            with b.loop(b.index(0), b.index(same * lanes), lanes) as loop:
                add(loop.index, lanes, None)
            if same < vectors:
                add(b.index(same * lanes), tile.widths[-1], tile.mask)
        write(run, waiting)

    def _add(self, rows: Sequence[Value], blocks: Run, waiting: Value) -> None:
        """Add the products of ``rows``, vectors of a block of the sum, with a list of blocks to the sums that wait."""
        b, sets = self.b, self.plan.sets
        first, end = blocks
        whole = b.add(first, b.mul(b.div(b.sub(end, first), sets), sets))
        for lower, upper, count in ((first, whole, sets), (whole, end, 1)):
            with b.loop(lower, upper, count) as loop:
                self._side_by_side(rows, loop.index, count, waiting)

    def _side_by_side(self, rows: Sequence[Value], number: Value, count: int, waiting: Value) -> None:
        """The products of ``rows`` with ``count`` blocks from ``number`` on, each of which has sums of its own: each is one chain of
        additions, and as many of them fill the pipeline. A short sum is one chain with all its blocks.
        """
        b, size, pitch = self.b, self.form.sparsity.rows, self.plan.tile_rows
        lanes = split_type(rows[0].type)[0]
        places, values = [], []
        for i in range(count):
            place, elements = self.stored.block(b.add(number, i))
            places += [b.element_pointer(waiting, b.add(place, j * pitch), "f32") for j in range(size)]
            values += [b.element_pointer(elements, b.index(j), "f32") for j in range(size)]
        sums = [b.load(place, rows[0].type) for place in places]
        one_chain = self.form.sum <= longest(chain_length(packed=True))
        totals: list[Value] = sums if one_chain else []
        for c, x in enumerate(rows):
            scalars = [b.load(b.element_pointer(v, b.index(c * size), "f32"), "f32") for v in values]
            factors = [b.broadcast(w, lanes) for w in scalars]
            if totals:
                totals = [b.op("math.fma", x, w, total) for w, total in zip(factors, totals, strict=True)]
            else:
                totals = [b.op("arith.mulf", x, w) for w in factors]
        for place, total in zip(places, totals if one_chain else added(b, sums, totals), strict=True):
            b.store(total, place)
