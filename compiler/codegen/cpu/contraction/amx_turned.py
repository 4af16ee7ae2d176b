"""Products of two activations by tile registers: each panel of the right factor is packed on the stack first.

It then lies as a constant factor does in memory. A thread takes the rows under one panel in turn (`kernel`), so a panel is packed once for
all of them. A K too long for the stack comes in blocks, and the sums of a few blocks of rows wait. Where columns are contiguous, two
neighbours of K are interleaved; where K is, squares of pairs are transposed. K is filled with zeros to whole steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from effc.compiler.codegen.cpu.amx import ROW_BYTES, ROWS, by_halves, load_tile, store_tile
from effc.compiler.codegen.cpu.contraction.amx import AmxKernel
from effc.compiler.codegen.cpu.contraction.amx_form import BLOCK, TURNS, in_blocks, packing_cycles
from effc.compiler.codegen.cpu.contraction.roles import Nest
from effc.compiler.codegen.cpu.contraction.shape import Shape
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.codegen.cpu.text import Value, vector_type
from effc.compiler.codegen.cpu.threads import Share
from effc.compiler.codegen.cpu.transpose import transpose
from effc.compiler.ir.expr import Expr

#: Elements of K that a square of pairs holds.
_SQUARE = ROW_BYTES // 2


class AmxTurnedKernel(AmxKernel):
    """A unit is one block of rows and one panel; of a K that comes in blocks, up to `TURNS` blocks of rows, whose sums wait."""

    def __init__(self, nest: Nest, shape: Shape, target: Target) -> None:
        super().__init__(nest, shape, target)
        self.in_blocks = in_blocks(nest)

    def _rows_of_unit(self) -> int:
        return self.shape.mr * (TURNS if self.in_blocks else 1)

    def unit_cycles(self) -> Expr:
        return (super().unit_cycles() + int(packing_cycles(self.nest))) * (TURNS if self.in_blocks else 1)

    def _prepare(self, share: Share) -> None:
        b = self.b
        length = self.sizes[-1].constant
        self.block = BLOCK // self.k_step * self.k_step
        elements = BLOCK if length is None or self.in_blocks else -(-length // _SQUARE) * _SQUARE
        self.panel = b.stack(elements * self.shape.nr, "i16")
        if self.in_blocks:
            self.waiting = b.stack(TURNS * self.shape.mr * self.shape.nr, self.accumulator)

    # -- units whose K comes in blocks --------------------------------------------------------------------------------
    def _unit(self, at: dict[str, Value]) -> None:
        if not self.in_blocks:
            super()._unit(at)
            return
        b, nest = self.b, self.nest
        outer, _, column = self._corner(at)
        rows, length = self._value(nest.size(nest.row)), self._value(self.sizes[-1])
        tiles = b.div(b.add(rows, self.shape.mr - 1), self.shape.mr)
        tile = b.mul(at.get("tile", b.index(0)), TURNS)
        turns = b.minimum(b.sub(tiles, tile), TURNS)
        place = {**outer, f"d{nest.column}": column}
        # At least once: without any K the sums are zeros.
        with b.loop(b.index(0), b.maximum(length, 1), self.block) as k:
            count = b.minimum(b.sub(length, k.index), self.block)
            self._pack(place, k.index, count)
            with b.loop(b.index(0), turns) as turn:
                _, start = self._rows(b.add(tile, turn.index), rows)
                row = place if nest.row is None else {**place, f"d{nest.row}": start}
                left = b.element_pointer(self._pointer(nest.left.load, row), k.index, self.element)
                self.sums = self._waiting(turn.index)
                first = b.compare("arith.cmpi", "eq", k.index, b.index(0))
                by_halves(b, self.height, partial(self._add, left, count, first))
        with b.loop(b.index(0), turns) as turn:
            first, start = self._rows(b.add(tile, turn.index), rows)
            self.sums = self._waiting(turn.index)
            self._finish(outer, column, start, b.sub(first, start))

    def _rows(self, tile: Value, rows: Value) -> tuple[Value, Value]:
        """The first row of a block that is its own, and the first that it computes."""
        first = self.b.mul(tile, self.height)
        return first, self.b.minimum(first, self.b.sub(rows, self.height))

    def _waiting(self, turn: Value) -> Value:
        return self.b.element_pointer(self.waiting, self.b.mul(turn, self.shape.mr * self.shape.nr), self.accumulator)

    def _add(self, left: Value, count: Value, first: Value, halves: int) -> None:
        """The products of ``count`` elements of K with the panel, to the sums; the ``first`` block of K finds none."""

        def clear() -> list[Value]:
            self._clear(halves)
            return []

        def load() -> list[Value]:
            self._move(load_tile, halves)
            return []

        self.b.choose(first, (), clear, load)
        self._steps(left, self.panel, count, halves, None)
        self._move(store_tile, halves)

    # -- packing ------------------------------------------------------------------------------------------------------
    def _right(self, outer: dict[str, Value], panel: Value, start: dict[str, Value]) -> Value:
        """The panel, packed where it is the share's first one or another than the unit before had."""
        b = self.b
        turn = b.rem(self.unit, b.maximum(self._value(self.row_tiles()), 1))
        other = b.compare("arith.cmpi", "eq", turn, b.index(0))
        first = b.compare("arith.cmpi", "eq", self.unit, self.share.lo)
        with b.when(b.op("arith.ori", other, first)):
            self._pack(start, b.index(0), self._value(self.sizes[-1]))
        return self.panel

    def _pack(self, start: dict[str, Value], k: Value, count: Value) -> None:
        """``count`` elements of K from ``k`` on."""
        if self.nest.stride(self.nest.right.load, self.nest.column).constant == 1:
            self._interleave(start, k, count)
        else:
            self._transpose(start, k, count)

    def _interleave(self, start: dict[str, Value], k: Value, count: Value) -> None:
        b, nest, lanes = self.b, self.nest, self.shape.lanes
        along = self._value(nest.stride(nest.right.load, nest.reduction[-1]))
        base = b.element_pointer(self._pointer(nest.right.load, start), b.mul(k, along), "i16")
        masks: Sequence[Value | None] = self._masks(start[f"d{nest.column}"]) or [None] * self.shape.vectors
        zero, order = b.constant(0, "i16", lanes), ", ".join(f"{i}, {lanes + i}" for i in range(lanes))
        steps, last = b.div(b.add(count, self.k_step - 1), self.k_step), b.sub(count, 1)
        with b.loop(b.index(0), b.mul(steps, self.k_step // 2)) as pair:
            lines, there = [], []
            for at in (b.mul(pair.index, 2), b.add(b.mul(pair.index, 2), 1)):
                lines.append(b.element_pointer(base, b.mul(b.minimum(at, last), along), "i16"))
                there.append(b.compare("arith.cmpi", "sle", at, last))
            for j, mask in enumerate(masks):
                places = [b.element_pointer(line, b.index(j * lanes), "i16") for line in lines]
                rows = [self.step.vector(p, "i16", mask) for p in places]
                x, y = (b.select(inside, row, zero) for inside, row in zip(there, rows, strict=True))
                wide = vector_type(2 * lanes, "i16")
                both = b.emit(f"vector.shuffle {x.name}, {y.name} [{order}] : {x.type}, {y.type}", wide)
                b.store(both, self._place(pair.index, j))

    def _transpose(self, start: dict[str, Value], k: Value, count: Value) -> None:
        """Columns beyond the last repeat it: they are never stored."""
        b, nest = self.b, self.nest
        column, last = start[f"d{nest.column}"], b.sub(self._value(nest.size(nest.column)), 1)
        whole = b.div(count, _SQUARE)
        rest = b.sub(count, b.mul(whole, _SQUARE))
        for j in range(self.shape.vectors):
            positions = [b.minimum(b.add(column, j * ROWS + r), last) for r in range(ROWS)]
            lines = [self._pointer(nest.right.load, {**start, f"d{nest.column}": p}) for p in positions]
            lines = [b.element_pointer(line, k, "i16") for line in lines]
            with b.loop(b.index(0), whole) as loop:
                self._square(lines, loop.index, j, None)
            if b.integer_of(rest) != 0:
                with b.when(b.compare("arith.cmpi", "sgt", rest, b.index(0))):
                    self._square(lines, whole, j, b.first_lanes(_SQUARE, rest))

    def _square(self, lines: list[Value], number: Value, j: int, within: Value | None) -> None:
        """Pairs of K of 16 columns, where ``within`` holds, else zeros."""
        b, pairs = self.b, vector_type(ROWS, "i32")
        rows = []
        for line in lines:
            elements = b.element_pointer(line, b.mul(number, _SQUARE), "i16")
            loaded = self._elements(elements, within)
            rows.append(b.emit(f"vector.bitcast {loaded.name} : {loaded.type} to {pairs}", pairs))
        for r, turned in enumerate(transpose(b, rows)):
            b.store(turned, self._place(b.add(b.mul(number, ROWS), r), j))

    def _elements(self, pointer: Value, within: Value | None) -> Value:
        b = self.b
        if within is None:
            return b.load(pointer, vector_type(_SQUARE, "i16"))
        return b.masked_load(pointer, within, b.constant(0, "i16", _SQUARE))

    def _place(self, pair: Value, j: int) -> Value:
        """Vector ``j`` of a pair of K in the panel."""
        b = self.b
        line = b.element_pointer(self.panel, b.mul(pair, 2 * self.shape.nr), "i16")
        return b.element_pointer(line, b.index(j * _SQUARE), "i16")
