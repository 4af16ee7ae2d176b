"""Products of two activations by tile registers: each panel of the right factor is packed on the stack first.

It then lies as a constant factor does in memory. A thread takes the rows under one panel in turn (`kernel`), so a panel is packed once for
all of them. Where columns are contiguous, two neighbours of K are interleaved; where K is, squares of pairs are transposed. K is filled
with zeros to whole steps.
"""

from __future__ import annotations

from effc.compiler.codegen.cpu.amx import ROW_BYTES, ROWS
from effc.compiler.codegen.cpu.contraction.amx import AmxKernel
from effc.compiler.codegen.cpu.contraction.amx_form import packing_cycles
from effc.compiler.codegen.cpu.text import Value, vector_type
from effc.compiler.codegen.cpu.threads import Share
from effc.compiler.codegen.cpu.transpose import transpose
from effc.compiler.ir.expr import Expr

#: Elements of K that a square of pairs holds.
_SQUARE = ROW_BYTES // 2


class AmxTurnedKernel(AmxKernel):
    """See the module's docstring."""

    def _unit_cycles(self) -> Expr:
        return super()._unit_cycles() + int(packing_cycles(self.nest))

    def _prepare(self, share: Share) -> None:
        length = self.sizes[-1].constant
        assert length is not None, "packs_tiles() admits only known sums"
        self.length = length
        self.panel = self.b.stack(-(-length // _SQUARE) * _SQUARE * self.shape.nr, "i16")

    def _right(self, outer: dict[str, Value], panel: Value, start: dict[str, Value]) -> Value:
        """The panel, packed where it is the share's first one or another than the unit before had."""
        b, nest = self.b, self.nest
        turn = b.rem(self.unit, b.maximum(self._value(self._row_tiles()), 1))
        other = b.compare("arith.cmpi", "eq", turn, b.index(0))
        first = b.compare("arith.cmpi", "eq", self.unit, self.share.lo)
        with b.when(b.op("arith.ori", other, first)):
            if nest.stride(nest.right.load, nest.column).constant == 1:
                self._interleave(start)
            else:
                self._transpose(start)
        return self.panel

    def _interleave(self, start: dict[str, Value]) -> None:
        b, nest, lanes = self.b, self.nest, self.shape.lanes
        base, along = (
            self._pointer(nest.right.load, start),
            self._value(nest.stride(nest.right.load, nest.reduction[-1])),
        )
        masks = self._masks(start[f"d{nest.column}"]) or [None] * self.shape.vectors
        zero, order = b.constant(0, "i16", lanes), ", ".join(f"{i}, {lanes + i}" for i in range(lanes))
        pairs = -(-self.length // self.k_step) * self.k_step // 2
        with b.loop(b.index(0), b.index(pairs)) as pair:
            first = b.mul(pair.index, 2)
            lines, there = [], []
            for k in (first, b.add(first, 1)):
                lines.append(b.element_pointer(base, b.mul(b.minimum(k, self.length - 1), along), "i16"))
                there.append(b.compare("arith.cmpi", "slt", k, b.index(self.length)))
            for j, mask in enumerate(masks):
                rows = [
                    self.step.vector(b.element_pointer(line, b.index(j * lanes), "i16"), "i16", mask) for line in lines
                ]
                x, y = (b.select(inside, row, zero) for inside, row in zip(there, rows, strict=True))
                both = b.emit(
                    f"vector.shuffle {x.name}, {y.name} [{order}] : {x.type}, {y.type}", vector_type(2 * lanes, "i16")
                )
                b.store(both, self._place(pair.index, j))

    def _transpose(self, start: dict[str, Value]) -> None:
        """Columns beyond the last repeat it: they are never stored."""
        b, nest = self.b, self.nest
        column, last = start[f"d{nest.column}"], b.sub(self._value(nest.size(nest.column)), 1)
        whole, rest = divmod(self.length, _SQUARE)
        for j in range(self.shape.vectors):
            positions = [b.minimum(b.add(column, j * ROWS + r), last) for r in range(ROWS)]
            lines = [self._pointer(nest.right.load, {**start, f"d{nest.column}": p}) for p in positions]
            with b.loop(b.index(0), b.index(whole)) as loop:
                self._square(lines, loop.index, j, None)
            if rest:
                self._square(lines, b.index(whole), j, b.first_lanes(_SQUARE, b.index(rest)))

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
        b, type_ = self.b, vector_type(_SQUARE, "i16")
        if within is None:
            return b.load(pointer, type_)
        zero = b.constant(0, "i16", _SQUARE)
        return b.emit(
            f"llvm.intr.masked.load {pointer.name}, {within.name}, {zero.name} {{alignment = 2 : i32}} "
            f": ({pointer.type}, {within.type}, {type_}) -> {type_}",
            type_,
        )

    def _place(self, pair: Value, j: int) -> Value:
        """Vector ``j`` of a pair of K in the panel."""
        b = self.b
        line = b.element_pointer(self.panel, b.mul(pair, 2 * self.shape.nr), "i16")
        return b.element_pointer(line, b.index(j * _SQUARE), "i16")
