"""Products whose right factor is not constant and has no contiguous columns: ``x @ w.T`` with weights in place, ``q @ k.T``.

A unit is a panel of ``nr`` columns and a block of rows. K runs in blocks: each block of the panel is turned on the stack into what a
packed factor looks like: ``[K block][nr]``, already as accumulators, or ``[K block / 2][nr][2]`` where bf16 pairs are summed in one
instruction. The rows' sums so far wait on the stack too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from effc.compiler.codegen.cpu.contraction.chains import chain_length
from effc.compiler.codegen.cpu.contraction.factors import Step
from effc.compiler.codegen.cpu.contraction.kernel import Kernel
from effc.compiler.codegen.cpu.contraction.tile import Tile
from effc.compiler.codegen.cpu.text import PTR, Value, vector_type
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
        rows = BLOCK_BYTES // (shape.nr * ITEM_SIZE[self.accumulator]) // shape.lanes * shape.lanes
        self.steps = min(rows * shape.group, chain_length(packed=False)) if self.step.rounds else rows * shape.group
        self.block = b.stack(rows * shape.nr, self.accumulator)
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
        self._sum(outer, row, rows, last, column)
        masks = self._masks(column)
        columns = [b.add(column, j * shape.lanes) for j in range(shape.vectors)]
        with b.loop(zero, rows, shape.mr) as loop:
            indices = [b.minimum(b.add(b.add(row, loop.index), i), last) for i in range(shape.mr)]
            totals = self._waiting(loop.index)
            split = [totals[i * shape.vectors : (i + 1) * shape.vectors] for i in range(shape.mr)]
            self.epilogue.write(outer, indices, columns, masks, split)

    def _sum(self, outer: dict[str, Value], row: Value, rows: Value, last: Value, column: Value) -> None:
        """Add all products of the rows to their sums."""
        self._blocks(0, {**outer}, lambda inner: self._add_block(inner, row, rows, last, column))

    def _blocks(self, depth: int, at: dict[str, Value], visit: Callable[[dict[str, Value]], None]) -> None:
        """Run ``visit`` for each block of K: every point of the outer sums, slices of the innermost one."""
        b, nest = self.b, self.nest
        name, size = f"d{nest.reduction[depth]}", self._value(self.sizes[depth])
        if depth < len(nest.reduction) - 1:
            with b.loop(b.index(0), size) as loop:
                self._blocks(depth + 1, {**at, name: loop.index}, visit)
            return
        with b.loop(b.index(0), size, self.steps) as loop:
            count = b.minimum(b.sub(size, loop.index), self.steps)
            visit({**at, name: loop.index, _STEPS: count})

    def _add_block(self, at: dict[str, Value], row: Value, rows: Value, last: Value, column: Value) -> None:
        self._turn(at, column)
        self._add_rows(self.step, at, row, rows, last)

    def _add_rows(
        self,
        step: Step,
        at: dict[str, Value],
        row: Value,
        rows: Value,
        last: Value,
        scales: Sequence[Value | None] | None = None,
    ) -> None:
        """Add the products with the block in the buffer, times ``scales`` of the column vectors, to the sums of all rows."""
        b, nest, shape = self.b, self.nest, self.shape
        together = 1 if step.turned else step.group
        inner = nest.reduction[-1]
        tile = Tile(
            step,
            shape.mr,
            shape.vectors,
            None,
            [var(_STEPS)],
            [nest.stride(nest.left.load, inner)],
            [const(shape.nr * together)],
            {**self.share.symbols, _STEPS: at[_STEPS]},
            shape.unroll,
            None,
            None,
            b.index(shape.lanes * together),
        )
        with b.loop(b.index(0), rows, shape.mr) as loop:
            left = []
            for i in range(shape.mr):
                place = dict(at)
                if nest.row is not None:
                    place[f"d{nest.row}"] = b.minimum(b.add(b.add(row, loop.index), i), last)
                left.append(self._at(nest.left.load, place))
            sums = tile.add(left, self.block, self._waiting(loop.index), scales)
            for n, total in enumerate(sums):
                i, j = divmod(n, shape.vectors)
                b.store(total, self._place(self.sums, b.add(loop.index, i), j))

    # -- turning ----------------------------------------------------------------------------------------------------
    def _turn(self, at: dict[str, Value], column: Value) -> None:
        """Copy ``[columns][K]`` to ``[K][columns]``; columns beyond the last repeat it, and are never stored."""
        b, nest, shape = self.b, self.nest, self.shape
        inner = nest.reduction[-1]
        end = b.sub(self._value(nest.size(nest.column)), 1)
        whole = b.div(at[_STEPS], shape.group)
        contiguous = nest.stride(nest.right.load, inner).constant == 1
        squares = b.mul(b.div(whole, shape.lanes), shape.lanes) if contiguous else b.index(0)
        along = b.mul(self._value(nest.stride(nest.right.load, inner)), shape.group)
        masks = self._masks(column)
        for j in range(shape.vectors):
            first = b.add(column, j * shape.lanes)
            if contiguous:
                places = [b.minimum(b.add(first, r), end) for r in range(shape.lanes)]
                lines = [self._at(nest.right.load, {**at, f"d{nest.column}": p}) for p in places]
                with b.loop(b.index(0), squares, shape.lanes) as loop:
                    rows = [self._units(self._moved(p, b.mul(loop.index, along)), None) for p in lines]
                    for r, turned in enumerate(transpose(b, rows)):
                        b.store(turned, self._place(self.block, b.add(loop.index, r), j))
            base = self._at(nest.right.load, {**at, f"d{nest.column}": b.minimum(first, end)})
            offsets = self._clamped_offsets(first, end)
            lined_up = shape.group == 1 and nest.stride(nest.right.load, nest.column).constant == 1
            with b.loop(squares, whole) as loop:
                at_step = self._moved(base, b.mul(loop.index, along))
                value = self._line(at_step, masks[j] if masks else None) if lined_up else self._units(at_step, offsets)
                b.store(value, self._place(self.block, loop.index, j))
            if shape.group == 2:
                with b.when(b.compare("arith.cmpi", "slt", b.mul(whole, 2), at[_STEPS])):
                    half = self.step.vector(self._moved(base, b.mul(whole, along)), "i16", None, offsets)
                    b.store(b.cast("arith.extui", half, "i32"), self._place(self.block, whole, j))

    def _line(self, pointer: Value, mask: Value | None) -> Value:
        """``lanes`` columns next to each other, as accumulators."""
        right = self.nest.right
        return self.step.convert(right, self.step.vector(pointer, self.step.memory(right), mask))

    def _units(self, pointer: Value, offsets: Value | None) -> Value:
        """``lanes`` neighbours from ``pointer``, or one for each of ``offsets``: accumulators, or pairs of bf16 as i32."""
        step, right, lanes = self.step, self.nest.right, self.shape.lanes
        if self.shape.group == 1:
            return step.convert(right, step.vector(pointer, step.memory(right), None, offsets))
        if offsets is None:  # pairs lie at even addresses only
            type_ = vector_type(lanes, "i32")
            return self.b.emit(f"llvm.load {pointer.name} {{alignment = 2 : i64}} : {PTR} -> {type_}", type_)
        low = self.b.cast("arith.extui", step.vector(pointer, "i16", None, offsets), "i32")
        second = self._moved(pointer, self.b.index(1))
        high = self.b.cast("arith.extui", step.vector(second, "i16", None, offsets), "i32")
        return self.b.op("arith.ori", low, self.b.op("arith.shli", high, self.b.constant(16, "i32", lanes)))

    def _moved(self, pointer: Value, elements: Value) -> Value:
        return self.b.element_pointer(pointer, elements, self.step.memory(self.nest.right))

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
