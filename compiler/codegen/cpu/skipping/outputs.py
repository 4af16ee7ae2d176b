"""Zeros in the results: the sums of the other columns alone are made, each of a row of the weight, ``[columns][sum]``."""

from __future__ import annotations

from collections.abc import Sequence

from effc.compiler.codegen.cpu.body import Scope
from effc.compiler.codegen.cpu.skipping.kernel import LINE_BYTES, SkippingKernel
from effc.compiler.codegen.cpu.skipping.nonzero import IndexList
from effc.compiler.codegen.cpu.text import Value
from effc.compiler.codegen.cpu.threads import Share

#: Columns whose sums are made together: a vector of activations is loaded once for them.
TOGETHER = 4


class OutputsKernel(SkippingKernel):
    """A unit's sums wait on the stack, zeros where there is none, for the epilogue, which is the dense kernel's."""

    def _units(self, share: Share) -> None:
        b, lanes = self.b, self.lanes
        self.listed, self.sums = IndexList(b, self.width, lanes), b.stack(self.width, "f32")
        with b.loop(share.lo, share.hi) as loop:
            column = b.mul(loop.index, self.width)
            count = self._list(column)
            whole = b.mul(b.div(count, TOGETHER), TOGETHER)
            with b.loop(b.index(0), whole, TOGETHER) as several:
                self._columns(column, several.index, TOGETHER)
            with b.loop(whole, count) as rest:
                self._columns(column, rest.index, 1)
            with b.loop(b.index(0), self._end(column), lanes) as vector:
                total = b.load(b.element_pointer(self.sums, vector.index, "f32"), f"vector<{lanes}xf32>")
                self._write(b.add(column, vector.index), [total])

    def _end(self, column: Value) -> Value:
        """Columns of the unit that starts at ``column``."""
        return self.b.minimum(self.b.sub(self.b.index(self.form.columns), column), self.width)

    def _list(self, column: Value) -> Value:
        """List the unit's columns that are needed; how many they are."""
        b, lanes, condition = self.b, self.lanes, self.form.condition
        assert condition is not None, "of the method 'outputs'"
        zero = b.constant(0, "f32", lanes)
        with b.loop(b.index(0), self._end(column), lanes, [b.index(0)]) as loop:
            first = b.add(column, loop.index)
            inside = self._mask(first)
            scope = Scope().lanes_of(f"d{self.nest.column}", first, lanes, inside)
            keep = self.body.vector(condition.instr, scope)
            if condition.skipped:
                keep = b.op("arith.xori", keep, b.constant(True, "i1", lanes))
            keep = keep if inside is None else b.op("arith.andi", keep, inside)
            b.store(zero, b.element_pointer(self.sums, loop.index, "f32"))
            loop.yield_([self.listed.append(loop.carried[0], first, keep)])
        (count,) = loop.results
        self.listed.close(count)
        return count

    def _columns(self, column: Value, number: Value, together: int) -> None:
        """The sums of ``together`` columns, from entry ``number`` of the list on."""
        b, lanes, size = self.b, self.lanes, self.form.sum
        chosen = [self.listed.entry(b.add(number, i)) for i in range(together)]
        weights = [self._weights(n) for n in chosen]
        later = [self._weights(self.listed.entry(b.add(number, together + i))) for i in range(together)]
        zero = b.constant(0, "f32", lanes)
        line = LINE_BYTES // self.form.item
        lines, whole = size // line * line, size // lanes * lanes
        with b.loop(b.index(0), b.index(lines), line, [zero] * together) as loop:
            for pointer in later:
                b.prefetch(self._place(pointer, loop.index), self.target.near_level)
            totals = loop.carried
            for part in range(0, line, lanes):
                totals = self._add(weights, b.add(loop.index, part), None, totals)
            loop.yield_(totals)
        totals = loop.results
        for part in range(lines, whole, lanes):
            totals = self._add(weights, b.index(part), None, totals)
        if size % lanes:
            totals = self._add(weights, b.index(whole), b.first_lanes(lanes, b.index(size - whole)), totals)
        for n, total in zip(chosen, totals, strict=True):
            one = b.emit(f"vector.reduction <add>, {total.name} : {total.type} into f32", "f32")
            b.store(one, b.element_pointer(self.sums, b.sub(n, column), "f32"))

    def _weights(self, column: Value) -> Value:
        return self._place(self.share.pointer(self.nest.right.operand), self.b.mul(column, self.form.sum))

    def _add(self, weights: Sequence[Value], at: Value, mask: Value | None, totals: Sequence[Value]) -> list[Value]:
        b = self.b

        def vector(pointer: Value) -> Value:
            return self._floats(self._place(pointer, at), mask)

        x = vector(self.row)
        return [b.op("math.fma", x, vector(w), t) for w, t in zip(weights, totals, strict=True)]
