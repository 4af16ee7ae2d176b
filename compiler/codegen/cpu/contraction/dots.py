"""Products of a few rows with a factor whose K is contiguous: lanes along K, as many columns at a time as a vector has lanes.

The sums of a block of columns are turned and added up to one vector, so that the epilogue sees columns in lanes as ever. Every
element of the right factor is read once a row, in order: what limits it is memory.
"""

from __future__ import annotations

from effc.compiler.codegen.cpu.contraction.kernel import Kernel
from effc.compiler.codegen.cpu.text import Value
from effc.compiler.codegen.cpu.transpose import transpose


class DotsKernel(Kernel):
    """A unit is one row and ``lanes`` columns."""

    def _rows_of_unit(self) -> int:
        return 1

    def _unit(self, at: dict[str, Value]) -> None:
        b, nest, shape = self.b, self.nest, self.shape
        zero = b.index(0)
        outer = {f"d{i}": at.get(f"d{i}", zero) for i in nest.outer}
        row, column = at.get("tile", zero), b.mul(at.get("panel", zero), shape.nr)
        place = dict(outer)
        if nest.row is not None:
            place[f"d{nest.row}"] = row
        end = b.sub(self._value(nest.size(nest.column)), 1)
        left = self._pointer(nest.left.load, place)
        right = [
            self._pointer(nest.right.load, {**place, f"d{nest.column}": b.minimum(b.add(column, r), end)})
            for r in range(shape.lanes)
        ]
        totals = self._sum(0, left, right, [self.step.zero()] * shape.lanes)
        columns = transpose(b, totals)
        add = "arith.addf" if self.accumulator[0] == "f" else "arith.addi"
        while len(columns) > 1:
            columns = [b.op(add, x, y) for x, y in zip(columns[::2], columns[1::2], strict=True)]
        self.epilogue.write(outer, [row], [column], self._masks(column), [columns])

    def _sum(self, depth: int, left: Value, right: list[Value], totals: list[Value]) -> list[Value]:
        b, nest, lanes = self.b, self.nest, self.shape.lanes
        size = self._value(self.sizes[depth])
        if depth < len(self.sizes) - 1:
            k = nest.reduction[depth]
            strides = [self._value(nest.stride(side.load, k)) for side in (nest.left, nest.right)]
            with b.loop(b.index(0), size, carried=totals) as loop:
                x = b.element_pointer(left, b.mul(loop.index, strides[0]), self.step.memory(nest.left))
                y = [b.element_pointer(p, b.mul(loop.index, strides[1]), self.step.memory(nest.right)) for p in right]
                loop.yield_(self._sum(depth + 1, x, y, loop.carried))
            return loop.results
        whole = b.mul(b.div(size, lanes), lanes)
        with b.loop(b.index(0), whole, lanes, totals) as loop:
            loop.yield_(self._add(left, right, loop.index, None, loop.carried))
        rest = b.sub(size, whole)
        if b.integer_of(rest) == 0:
            return loop.results
        mask = b.compare("arith.cmpi", "slt", b.iota(lanes), b.broadcast(rest, lanes))
        return self._add(left, right, whole, mask, loop.results)

    def _add(self, left: Value, right: list[Value], at: Value, mask: Value | None, totals: list[Value]) -> list[Value]:
        step = self.step
        x = self._vector(left, at, mask, left=True)
        return [
            step.accumulate(total, [x], [self._vector(p, at, mask, left=False)])
            for p, total in zip(right, totals, strict=True)
        ]

    def _vector(self, pointer: Value, at: Value, mask: Value | None, *, left: bool) -> Value:
        side = self.nest.left if left else self.nest.right
        memory = self.step.memory(side)
        return self.step.convert(side, self.step.vector(self.b.element_pointer(pointer, at, memory), memory, mask))
