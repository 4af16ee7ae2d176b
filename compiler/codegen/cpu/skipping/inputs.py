"""Zeros in the row: a panel of columns, ``[sum][width]``, is walked by the list of elements that are not zero."""

from __future__ import annotations

from effc.compiler.codegen.cpu.contraction.chains import chain_length
from effc.compiler.codegen.cpu.skipping.kernel import LINE_BYTES, SkippingKernel
from effc.compiler.codegen.cpu.skipping.nonzero import IndexList
from effc.compiler.codegen.cpu.sums import added, folded
from effc.compiler.codegen.cpu.text import Value
from effc.compiler.codegen.cpu.threads import Share

#: Accumulators that keep both multiply-add units busy: their latency is 4 cycles.
BUSY = 8
#: Bytes of panel rows between the one that is multiplied and the one that is fetched: the list tells which, the processor would not know.
#: (As in `choice.WIDEST`: on Emerald Rapids 1.53 times as fast as dense by 1 KiB, 1.64 by 4 and by 12; on two cores of Zen 4, in panels of
#: 18 vectors, 1.20 by 4, 1.54 by 8 and 1.46 by 16.)
AHEAD_BYTES = 8192


class InputsKernel(SkippingKernel):
    """Every thread makes the list for itself: 1,536 elements take some 200 cycles, as long as 5 rows of 576 columns."""

    def _units(self, share: Share) -> None:
        b, form = self.b, self.form
        self.listed = IndexList(b, -(-form.sum // self.lanes) * self.lanes, self.lanes)
        self.vectors = self.width // self.lanes
        count = self._list()
        panels = share.pointer(self.nest.right.operand)
        with b.loop(share.lo, share.hi) as loop:
            panel = self._place(panels, b.mul(loop.index, form.sum * self.width))
            self._write(b.mul(loop.index, self.width), self._sums(panel, count))

    def _list(self) -> Value:
        """List the elements that are not zero, or all of them where a weight is not finite; how many they are."""
        b, lanes, size = self.b, self.lanes, self.form.sum
        flag = b.load(self.share.pointer(len(self.spec.operands) - 1), "f32")
        every = b.broadcast(b.compare("arith.cmpf", "one", flag, b.constant(0, "f32")), lanes)
        zero = b.constant(0, "f32", lanes)
        with b.loop(b.index(0), b.index(-(-size // lanes) * lanes), lanes, [b.index(0)]) as loop:
            inside = None
            if size % lanes:
                inside = b.first_lanes(lanes, b.sub(b.index(size), loop.index))
            x = self._floats(self._place(self.row, loop.index), inside)
            keep = b.op("arith.ori", b.compare("arith.cmpf", "une", x, zero), every)
            keep = keep if inside is None else b.op("arith.andi", keep, inside)
            loop.yield_([self.listed.append(loop.carried[0], loop.index, keep)])
        (count,) = loop.results
        self.listed.close(count)
        return count

    def _sums(self, panel: Value, count: Value) -> list[Value]:
        """Of the columns of a panel, in chains of additions."""
        b = self.b
        zeros = [b.constant(0, "f32", self.lanes)] * self.vectors
        chain = chain_length(packed=True) * self._sets
        with b.loop(b.index(0), count, chain, zeros) as loop:
            end = b.minimum(b.add(loop.index, chain), count)
            found = self._chain(panel, loop.index, end, zeros)
            loop.yield_(added(b, loop.carried, found))
        return loop.results

    @property
    def _sets(self) -> int:
        """Sets of accumulators that take turns."""
        return max(BUSY // self.vectors, 1)

    def _chain(self, panel: Value, first: Value, end: Value, zeros: list[Value]) -> list[Value]:
        b, sets, n = self.b, self._sets, self.vectors
        whole = b.add(first, b.mul(b.div(b.sub(end, first), sets), sets))
        with b.loop(first, whole, sets, zeros * sets) as loop:
            found = []
            for i in range(sets):
                found += self._add(panel, b.add(loop.index, i), loop.carried[i * n : (i + 1) * n])
            loop.yield_(found)
        total = folded(b, loop.results, sets)
        if sets == 1:
            return total
        with b.loop(whole, end, carried=total) as loop:
            loop.yield_(self._add(panel, loop.index, loop.carried))
        return loop.results

    def _add(self, panel: Value, number: Value, sums: list[Value]) -> list[Value]:
        """``sums`` plus the products of one entry of the list."""
        b, k = self.b, self.listed.entry(number)
        ahead = min(max(AHEAD_BYTES // (self.form.item * self.width), 1), 16)
        later = self._place(panel, b.mul(self.listed.entry(b.add(number, ahead)), self.width))
        row = self._place(panel, b.mul(k, self.width))
        x = b.broadcast(self._floats(self._place(self.row, k), lanes=1), self.lanes)
        found = []
        for j, total in enumerate(sums):
            place = b.index(j * self.lanes)
            if j * self.lanes * self.form.item % LINE_BYTES == 0:
                b.prefetch(self._place(later, place), self.target.near_level)
            found.append(b.op("math.fma", x, self._floats(self._place(row, place)), total))
        return found
