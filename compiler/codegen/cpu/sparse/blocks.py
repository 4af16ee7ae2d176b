"""Lanes are rows, and a vector of them of a whole block of the sum stays in registers while the columns that store it pass.

A stored element is then the only thing that a multiply-add loads; the sums of a column move once a block.
"""

from __future__ import annotations

from effc.compiler.codegen.cpu.sparse.rows import RowsKernel
from effc.compiler.codegen.cpu.sparse.walk import vector_at
from effc.compiler.codegen.cpu.text import Value


class BlocksKernel(RowsKernel):
    """Each part of the sum is one column of blocks; its lists say the rows of blocks that store one."""

    def _shares(self, outer: dict[str, Value], first: Value, shares: tuple[Value, Value]) -> None:
        """One after the other: their sums stay in the first-level cache."""
        with self.b.loop(*shares) as loop:
            self.number = loop.index
            self._unit(outer, first, self.stored.run(loop.index, self.b.add(loop.index, 1)))

    def _wait(
        self, base: Value, step: Value, vectors: int, mask: Value | None, run: tuple[Value, Value], waiting: Value
    ) -> None:
        b, plan, form, lanes = self.b, self.plan, self.form, self.plan.lanes
        zero = b.constant(0, "f32", lanes)
        columns = b.mul(b.sub(run[1], run[0]), form.sparsity.rows)
        with b.loop(b.index(0), columns) as loop:
            line = b.element_pointer(waiting, b.mul(loop.index, plan.tile_rows), "f32")
            for v in range(vectors):
                b.store(zero, b.element_pointer(line, b.index(v * lanes), "f32"))
        with b.loop(b.index(0), b.index(plan.parts)) as part:
            number = b.add(b.mul(part.index, plan.shares), self.number)
            blocks = self.stored.blocks(number, b.add(number, 1))
            k = b.minimum(b.mul(part.index, form.sparsity.columns), form.sum - form.sparsity.columns)
            left = b.element_pointer(base, b.mul(k, step), "f32")
            whole = vectors if mask is None else vectors - 1
            with b.loop(b.index(0), b.index(whole * lanes), lanes) as loop:
                at = b.element_pointer(waiting, loop.index, "f32")
                self._add(b.element_pointer(left, loop.index, "f32"), step, None, blocks, run, at)
            if mask is not None:
                rest = b.index(whole * lanes)
                at = b.element_pointer(waiting, rest, "f32")
                self._add(b.element_pointer(left, rest, "f32"), step, mask, blocks, run, at)

    def _add(
        self,
        left: Value,
        step: Value,
        mask: Value | None,
        blocks: tuple[Value, Value],
        run: tuple[Value, Value],
        waiting: Value,
    ) -> None:
        """Add the products of one vector of rows of a block of the sum, at ``left``, with a list of blocks to the sums that wait."""
        b, lanes, sparsity, sets = self.b, self.plan.lanes, self.form.sparsity, self.plan.sets
        rows = [
            vector_at(b, b.element_pointer(left, b.mul(step, c), "f32"), lanes, mask) for c in range(sparsity.columns)
        ]
        with b.loop(*blocks) as loop:
            row, values = self.stored.block(loop.index)
            for i in range(sparsity.rows):
                chains: list[Value] = []
                for c, x in enumerate(rows):
                    at = b.element_pointer(values, b.index(c * sparsity.rows + i), "f32")
                    w = b.broadcast(b.load(at, "f32"), lanes)
                    if c < sets:
                        chains.append(b.op("arith.mulf", x, w))
                    else:
                        chains[c % sets] = b.op("math.fma", x, w, chains[c % sets])
                total = chains[0]
                for other in chains[1:]:
                    total = b.op("arith.addf", total, other)
                place = self._place(waiting, run, row, i, 1)
                b.store(b.op("arith.addf", b.load(place, total.type), total), place)
