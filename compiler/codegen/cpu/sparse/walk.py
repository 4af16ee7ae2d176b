"""The parts of a packed sparse factor (`runtime/sparse_panels.py`), and sums over the stored blocks of one row of blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from effc.compiler.codegen.cpu.contraction.chains import chain_length, longest
from effc.compiler.codegen.cpu.sparse.plan import Plan
from effc.compiler.codegen.cpu.sums import added, folded
from effc.compiler.codegen.cpu.text import Builder, Value, vector_type

#: ``add(sums, k, values, column)``: sums plus the products of `Plan.width` columns of a block from one on: ``k`` is where the block's first
#: element of the sum is, and ``values`` where its elements lie.
Add = Callable[[Sequence[Value], Value, Value, int], list[Value]]


class Stored:
    """``base``: of the packed factor."""

    def __init__(self, b: Builder, plan: Plan, base: Value) -> None:
        self.b, self.plan = b, plan
        self.runs = base
        self.starts = b.element_pointer(base, b.index(plan.starts_at), "i32")
        self.indices = b.element_pointer(base, b.index(plan.indices_at), "i32")
        self.values = b.element_pointer(base, b.index(plan.values_at), "f32")

    def run(self, share: Value, end: Value) -> tuple[Value, Value]:
        """The first row of blocks of the shares up to ``end``, and that after their last."""
        return self._integer(self.runs, share), self._integer(self.runs, end)

    def blocks(self, number: Value, end: Value) -> tuple[Value, Value]:
        """The first block of list ``number``, and the first of list ``end``."""
        return self._integer(self.starts, number), self._integer(self.starts, end)

    def block(self, number: Value) -> tuple[Value, Value]:
        """What is said of a block, and where its elements lie."""
        return self._integer(self.indices, number), self.elements(number)

    def elements(self, number: Value) -> Value:
        """Where the elements of a block lie."""
        size = self.plan.form.sparsity.rows * self.plan.form.sparsity.columns
        return self.b.element_pointer(self.values, self.b.mul(number, size), "f32")

    def said(self, number: Value, count: int) -> list[Value]:
        """What is said of ``count`` blocks from ``number`` on; of two with one load."""
        b = self.b
        if count % 2:
            return [self._integer(self.indices, b.add(number, i)) for i in range(count)]
        found = []
        for i in range(0, count, 2):
            pair = b.load(b.element_pointer(self.indices, b.add(number, i), "i32"), "i64")
            low = b.cast("arith.extui", b.cast("arith.trunci", pair, "i32"), "i64")
            found += [low, b.op("arith.shrui", pair, b.index(32))]
        return found

    def sums(self, part: Value, row: Value, zeros: list[Value], add: Add) -> list[Value]:
        """As many vectors as ``zeros``: the sums over the blocks of a row of blocks in one part of the sum; long ones by chains of
        additions.
        """
        b, plan = self.b, self.plan
        number = b.add(b.mul(part, plan.form.blocks), row)
        first, end = self.blocks(number, b.add(number, 1))
        if plan.part_length // plan.width <= longest(chain_length(packed=True)):
            return self._chain(first, end, zeros, add)
        step = max(plan.sets * chain_length(packed=True) // plan.turns, 1)
        with b.loop(first, end, step, carried=zeros) as loop:
            found = self._chain(loop.index, b.minimum(b.add(loop.index, step), end), zeros, add)
            loop.yield_(added(b, loop.carried, found))
        return loop.results

    def _chain(self, first: Value, end: Value, zeros: list[Value], add: Add) -> list[Value]:
        """Sums over the blocks from ``first`` to ``end``. Sets of accumulators take turns with the columns of a block, or with blocks."""
        b, sets, count = self.b, self.plan.sets, len(zeros)
        unrolled = sets if self.plan.turns == 1 else 1
        whole = b.add(first, b.mul(b.div(b.sub(end, first), unrolled), unrolled))
        with b.loop(first, whole, unrolled, carried=zeros * sets) as loop:
            sums = [loop.carried[i * count : (i + 1) * count] for i in range(sets)]
            for u, k in enumerate(self.said(loop.index, unrolled)):
                self._block(k, self.elements(b.add(loop.index, u)), u, sums, add)
            loop.yield_([v for one in sums for v in one])
        total = folded(b, loop.results, sets)
        if unrolled == 1:
            return total
        with b.loop(whole, end, carried=total) as loop:
            sums = [loop.carried]
            self._block(*self.block(loop.index), 0, sums, add)
            loop.yield_(sums[0])
        return loop.results

    def _block(self, k: Value, values: Value, turn: int, sums: list[list[Value]], add: Add) -> None:
        """Add the products of a block to ``sums``, its columns to one after the other from ``turn`` on."""
        for i in range(self.plan.turns):
            taken = (turn + i) % len(sums)
            sums[taken] = add(sums[taken], k, values, i * self.plan.width)

    def _integer(self, pointer: Value, index: Value) -> Value:
        b = self.b
        return b.cast("arith.extui", b.load(b.element_pointer(pointer, index, "i32"), "i32"), "i64")


def vector_at(b: Builder, pointer: Value, lanes: int, mask: Value | None) -> Value:
    """``lanes`` floats, zeros where ``mask`` is off: nothing is read there."""
    if mask is None:
        return b.load(pointer, vector_type(lanes, "f32"))
    return b.masked_load(pointer, mask, b.constant(0, "f32", lanes))
