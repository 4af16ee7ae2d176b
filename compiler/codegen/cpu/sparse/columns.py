"""Lanes are columns: the dense kernel's register tile, whose steps along the sum are those that a panel stores."""

from __future__ import annotations

from collections.abc import Sequence

from effc.compiler.codegen.cpu.contraction.epilogue import Epilogue
from effc.compiler.codegen.cpu.contraction.rows import by_height, heights, place
from effc.compiler.codegen.cpu.sparse.kernel import SparseKernel
from effc.compiler.codegen.cpu.sparse.walk import Add
from effc.compiler.codegen.cpu.text import Value
from effc.compiler.codegen.cpu.threads import Share
from effc.compiler.ir.expr import const


class ColumnsKernel(SparseKernel):
    """Units are numbered with the shares outermost: the stored elements of one stay in L2 while the rows pass."""

    def _body(self, share: Share) -> None:
        b, plan, nest = self.b, self.plan, self.nest
        self.epilogue = Epilogue(b, nest, self._new_body())
        axes = [("share", const(plan.shares)), *self._outer_axes(), ("tile", plan.tiles)]
        rows = self._value(self.form.rows)
        with b.loop(share.lo, share.hi) as loop:
            at = self._indices(loop.index, axes)
            outer = {f"d{i}": at[f"d{i}"] for i in nest.outer}
            first, height = place(b, rows, self._value(plan.tiles), at["tile"])
            run = self.stored.run(at["share"], b.add(at["share"], 1))
            by_height(b, height, heights(self.form.rows, plan.height), lambda n: self._tiles(outer, first, n, run))

    def _tiles(self, outer: dict[str, Value], first: Value, rows: int, run: tuple[Value, Value]) -> None:
        """``rows`` rows from ``first`` on, and the panels of a run."""
        b, size, lanes = self.b, self.form.sparsity.rows, self.plan.lanes
        pointers = self._lines(outer, first, rows)
        indices = [b.add(first, i) for i in range(rows)]
        zeros = [b.constant(0, "f32", lanes)] * (rows * size // lanes)
        with b.loop(*run) as loop:
            column = b.mul(loop.index, size)
            sums = self.stored.sums(b.index(0), loop.index, zeros, self._adder(pointers))
            columns = [b.add(column, j * lanes) for j in range(size // lanes)]
            split = [sums[i * len(columns) : (i + 1) * len(columns)] for i in range(rows)]
            self.epilogue.write(outer, indices, columns, self._masks(columns, size, lanes), split)

    def _adder(self, pointers: Sequence[Value]) -> Add:
        b, plan, size = self.b, self.plan, self.form.sparsity.rows
        step = self._value(self.form.step)

        def add(sums: Sequence[Value], k: Value, values: Value, column: int) -> list[Value]:
            known = plan.step
            offset = b.mul(b.add(k, column), step) if known is None else b.add(k, column * known)
            found = []
            places = [b.index(column * size + j) for j in range(0, size, plan.lanes)]
            weights = [b.load(b.element_pointer(values, p, "f32"), sums[0].type) for p in places]
            for i, pointer in enumerate(pointers):
                x = b.broadcast(b.load(b.element_pointer(pointer, offset, "f32"), "f32"), plan.lanes)
                for j, w in enumerate(weights):
                    found.append(b.op("math.fma", x, w, sums[i * len(weights) + j]))
            return found

        return add
