"""Lanes are the elements of a block along the sum: the dense factor is read where it lies, and each sum is folded once, at its end.

The sums of a row of blocks are vectors, one a row of the tile; those of as many columns as there are lanes are folded together, which
gives vectors of columns.
"""

from __future__ import annotations

from collections.abc import Sequence

from effc.compiler.codegen.cpu.body import Scope
from effc.compiler.codegen.cpu.sparse.columns import ColumnsKernel
from effc.compiler.codegen.cpu.sparse.walk import Add, vector_at
from effc.compiler.codegen.cpu.text import Value
from effc.compiler.codegen.cpu.threads import Share
from effc.compiler.codegen.cpu.transpose import transposed_sum


class DotsKernel(ColumnsKernel):
    """Blocks have one row."""

    def _body(self, share: Share) -> None:
        self.unfolded = self.b.stack(self.plan.lanes * self.plan.height * self.plan.lanes, "f32")
        super()._body(share)

    def _tiles(self, outer: dict[str, Value], first: Value, rows: int, run: tuple[Value, Value]) -> None:
        b, lanes = self.b, self.plan.lanes
        add = self._adder(self._lines(outer, first, rows))
        root, zeros = Scope(dims=dict(outer)), [b.constant(0, "f32", lanes)] * rows
        with b.loop(*run, lanes) as group:
            count = b.minimum(b.sub(run[1], group.index), lanes)
            with b.loop(b.index(0), count) as column:
                sums = self.stored.sums(b.index(0), b.add(group.index, column.index), zeros, add)
                for i, total in enumerate(sums):
                    b.store(total, self._unfolded(i, column.index))
            mask = b.first_lanes(lanes, count)
            shared = self.epilogue.shared(root, [group.index], [mask], lanes)
            for i in range(rows):
                parts = [vector_at(b, self._unfolded(i, b.index(j)), lanes, None) for j in range(lanes)]
                total = transposed_sum(b, parts)
                self.epilogue.row(root, b.add(first, i), [group.index], [mask], shared, [total])

    def _unfolded(self, row: int, column: Value) -> Value:
        """Where the sums of a row and a column of the group wait."""
        b, lanes = self.b, self.plan.lanes
        return b.element_pointer(self.unfolded, b.mul(b.add(column, row * lanes), lanes), "f32")

    def _adder(self, pointers: Sequence[Value]) -> Add:
        b, lanes = self.b, self.plan.lanes

        def add(sums: Sequence[Value], k: Value, values: Value, column: int) -> list[Value]:
            w = vector_at(b, b.element_pointer(values, b.index(column), "f32"), lanes, None)
            places = [b.element_pointer(pointer, b.add(k, column), "f32") for pointer in pointers]
            rows = [vector_at(b, place, lanes, None) for place in places]
            return [b.op("math.fma", x, w, total) for x, total in zip(rows, sums, strict=True)]

        return add
