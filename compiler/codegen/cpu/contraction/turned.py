"""Products whose right factor is not constant and has no contiguous columns: ``x @ w.T`` with weights in place, ``q @ k.T``.

A unit is a panel of ``nr`` columns and a block of rows. K runs in blocks: each block of the panel is turned on the stack into what a
packed factor looks like, ``[K block][nr]``, already as accumulators; the rows' sums so far wait on the stack too.
"""

from __future__ import annotations

from effc.compiler.codegen.cpu.contraction.kernel import Kernel
from effc.compiler.codegen.cpu.contraction.tile import Tile
from effc.compiler.codegen.cpu.text import Value, vector_type
from effc.compiler.codegen.cpu.threads import Share
from effc.compiler.codegen.cpu.transpose import transpose
from effc.compiler.ir.expr import const, var
from effc.compiler.ir.spec import ITEM_SIZE

#: Bytes of the turned block and of the waiting sums: together less than the 64 KiB of stack that a kernel may use.
BLOCK_BYTES, SUM_BYTES = 32 * 1024, 24 * 1024

#: Names of the sizes of the block at hand, beside the spec's symbols.
_STEPS = "block"


class TurnedKernel(Kernel):
    """See the module's docstring."""

    turned = True

    def _rows_of_unit(self) -> int:
        size = ITEM_SIZE[self.accumulator]
        return max(SUM_BYTES // (self.shape.nr * size) // self.shape.mr * self.shape.mr, self.shape.mr)

    def _prepare(self, share: Share) -> None:
        b, shape = self.b, self.shape
        self.steps = BLOCK_BYTES // (shape.nr * ITEM_SIZE[self.accumulator]) // shape.lanes * shape.lanes
        self.block = b.stack(self.steps * shape.nr, self.accumulator)
        self.sums = b.stack(self._rows_of_unit() * shape.nr, self.accumulator)

    def _unit(self, at: dict[str, Value]) -> None:
        b, nest, shape = self.b, self.nest, self.shape
        zero = b.index(0)
        outer = {f"d{i}": at.get(f"d{i}", zero) for i in nest.outer}
        column = b.mul(at.get("panel", zero), shape.nr)
        row = b.mul(at.get("tile", zero), self._rows_of_unit())
        rows = b.minimum(b.sub(self._value(nest.size(nest.row)), row), self._rows_of_unit())
        last = b.sub(b.add(row, rows), 1)
        with b.loop(zero, b.index(self._rows_of_unit() * shape.nr), shape.lanes) as loop:
            b.store(self.step.zero(), b.element_pointer(self.sums, loop.index, self.accumulator))
        self._blocks(0, {**outer}, lambda inner: self._add_block(inner, row, rows, last, column))
        masks = self._masks(column)
        columns = [b.add(column, j * shape.lanes) for j in range(shape.vectors)]
        with b.loop(zero, rows, shape.mr) as loop:
            indices = [b.minimum(b.add(b.add(row, loop.index), i), last) for i in range(shape.mr)]
            totals = self._waiting(loop.index)
            split = [totals[i * shape.vectors : (i + 1) * shape.vectors] for i in range(shape.mr)]
            self.epilogue.write(outer, indices, columns, masks, split)

    def _blocks(self, depth: int, at: dict[str, Value], visit: object) -> None:
        """Run ``visit`` for each block of K: every point of the outer sums, slices of the innermost one."""
        b, nest = self.b, self.nest
        name, size = f"d{nest.reduction[depth]}", self._value(self.sizes[depth])
        if depth < len(nest.reduction) - 1:
            with b.loop(b.index(0), size) as loop:
                self._blocks(depth + 1, {**at, name: loop.index}, visit)
            return
        with b.loop(b.index(0), size, self.steps) as loop:
            count = b.minimum(b.sub(size, loop.index), self.steps)
            assert callable(visit)
            visit({**at, name: loop.index, _STEPS: count})

    def _add_block(self, at: dict[str, Value], row: Value, rows: Value, last: Value, column: Value) -> None:
        b, nest, shape = self.b, self.nest, self.shape
        self._turn(at, column)
        inner = nest.reduction[-1]
        tile = Tile(
            self.step,
            shape.mr,
            shape.vectors,
            None,
            [var(_STEPS)],
            [nest.stride(nest.left.load, inner)],
            [const(shape.nr)],
            {**self.share.symbols, _STEPS: at[_STEPS]},
            shape.unroll,
            None,
            None,
            b.index(shape.lanes),
        )
        with b.loop(b.index(0), rows, shape.mr) as loop:
            left = []
            for i in range(shape.mr):
                place = dict(at)
                if nest.row is not None:
                    place[f"d{nest.row}"] = b.minimum(b.add(b.add(row, loop.index), i), last)
                left.append(self._at(nest.left.load, place))
            sums = tile.run(left, self.block, self._waiting(loop.index))
            for i, totals in enumerate(sums):
                for j, total in enumerate(totals):
                    b.store(total, self._place(self.sums, b.add(loop.index, i), j))

    # -- turning ----------------------------------------------------------------------------------------------------
    def _turn(self, at: dict[str, Value], column: Value) -> None:
        """Copy ``[columns][K]`` to ``[K][columns]``; columns beyond the last repeat it, and are never stored."""
        b, nest, shape, step = self.b, self.nest, self.shape, self.step
        inner, count = nest.reduction[-1], at[_STEPS]
        end = b.sub(self._value(nest.size(nest.column)), 1)
        contiguous = nest.stride(nest.right.load, inner).constant == 1
        memory = step.memory(nest.right)
        squares = b.mul(b.div(count, shape.lanes), shape.lanes) if contiguous else b.index(0)
        along = self._value(nest.stride(nest.right.load, inner))
        for j in range(shape.vectors):
            first = b.add(column, j * shape.lanes)
            if contiguous:
                lines = [
                    self._at(nest.right.load, {**at, f"d{nest.column}": b.minimum(b.add(first, r), end)})
                    for r in range(shape.lanes)
                ]
                with b.loop(b.index(0), squares, shape.lanes) as loop:
                    rows = [
                        step.convert(nest.right, b.load(b.element_pointer(p, loop.index, memory), vector_type(shape.lanes, memory)))
                        for p in lines
                    ]
                    for r, turned in enumerate(transpose(b, rows)):
                        b.store(turned, self._place(self.block, b.add(loop.index, r), j))
            base = self._at(nest.right.load, {**at, f"d{nest.column}": b.minimum(first, end)})
            offsets = self._clamped_offsets(first, end)
            with b.loop(squares, count) as loop:
                pointer = b.element_pointer(base, b.mul(loop.index, along), memory)
                value = step.convert(nest.right, step.vector(pointer, memory, None, offsets))
                b.store(value, self._place(self.block, loop.index, j))

    def _clamped_offsets(self, first: Value, end: Value) -> Value:
        """Elements from the first column of a vector (or the last that exists) to the column of each lane."""
        b, lanes = self.b, self.shape.lanes
        room = b.maximum(b.sub(end, first), 0)
        steps = b.op("arith.minsi", b.iota(lanes), b.broadcast(room, lanes))
        return b.op("arith.muli", steps, b.broadcast(self._column_stride(), lanes))

    # -- places -----------------------------------------------------------------------------------------------------
    def _at(self, load: int, at: dict[str, Value]) -> Value:
        """Address of a factor at a point of all its dimensions."""
        side = self.nest.left if load == self.nest.left.load else self.nest.right
        return self._address(self.nest.address(load), side, at)

    def _waiting(self, row: Value) -> list[Value]:
        b, shape = self.b, self.shape
        return [
            b.load(self._place(self.sums, b.add(row, i), j), self.step.type)
            for i in range(shape.mr)
            for j in range(shape.vectors)
        ]

    def _place(self, base: Value, row: Value, j: int) -> Value:
        b = self.b
        line = b.element_pointer(base, b.mul(row, self.shape.nr), self.accumulator)
        return b.element_pointer(line, b.index(j * self.shape.lanes), self.accumulator)


