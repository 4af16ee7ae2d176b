"""Lanes are columns, and each takes from a group of the dense factor the elements that it stores values for (`group_plan`)."""

from __future__ import annotations

from collections.abc import Sequence

from effc.compiler.codegen.cpu.contraction.ahead import Ahead
from effc.compiler.codegen.cpu.contraction.epilogue import Epilogue
from effc.compiler.codegen.cpu.contraction.rows import by_height, heights, place
from effc.compiler.codegen.cpu.lowp import to_f32
from effc.compiler.codegen.cpu.permute import permuted
from effc.compiler.codegen.cpu.sparse.group_plan import WORD, WORD_BYTES, GroupPlan
from effc.compiler.codegen.cpu.sparse.kernel import ProductKernel
from effc.compiler.codegen.cpu.sums import added, folded
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.codegen.cpu.text import Value, vector_type
from effc.compiler.codegen.cpu.threads import Share, parallel_kernel
from effc.compiler.ir.expr import as_expr, const, product
from effc.compiler.ir.spec import KernelSpec

#: ``[set][row * vectors + vector]``.
Sums = list[list[Value]]


class GroupsKernel(ProductKernel):
    """A unit is a tile of rows and a panel of columns; the panels are outermost, so that one stays in L2 while the rows pass."""

    def __init__(self, spec: KernelSpec, plan: GroupPlan, target: Target) -> None:
        super().__init__(spec, plan.form, target)
        self.plan = plan

    def text(self) -> str:
        plan = self.plan
        units = product([plan.form.outer, plan.tiles, const(plan.panels)])
        with parallel_kernel(self.b, self.spec, units, as_expr(plan.unit_cycles)) as share:
            self.share = share
            self._body(share)
        return self.b.text()

    def _body(self, share: Share) -> None:
        b, plan, nest = self.b, self.plan, self.nest
        self.epilogue = Epilogue(b, nest, self._new_body())
        axes = [("panel", const(plan.panels)), *self._outer_axes(), ("tile", plan.tiles)]
        rows = self._value(self.form.rows)
        with b.loop(share.lo, share.hi) as loop:
            at = self._indices(loop.index, axes)
            outer = {f"d{i}": at[f"d{i}"] for i in nest.outer}
            first, height = place(b, rows, self._value(plan.tiles), at["tile"])
            by_height(
                b, height, heights(self.form.rows, plan.height), lambda n: self._tile(outer, at["panel"], first, n)
            )

    def _tile(self, outer: dict[str, Value], panel: Value, first: Value, rows: int) -> None:
        """``rows`` rows from ``first`` on."""
        b, plan = self.b, self.plan
        base = b.element_pointer(self.share.pointer(self.nest.right.operand), b.mul(panel, plan.panel_words), "i32")
        sums = self._sums(self._lines(outer, first, rows), base)
        columns = [b.add(b.mul(panel, plan.width), v * plan.lanes) for v in range(plan.vectors)]
        split = [sums[r * plan.vectors : (r + 1) * plan.vectors] for r in range(rows)]
        masks = self._masks(columns, plan.width, plan.lanes)
        self.epilogue.write(outer, [b.add(first, r) for r in range(rows)], columns, masks, split)

    # -- sums -------------------------------------------------------------------------------------------------------
    def _sums(self, lines: Sequence[Value], base: Value) -> list[Value]:
        """Of all groups of a panel, whose part of the factor lies at ``base``; long ones by chains of additions."""
        b, plan = self.b, self.plan
        zeros = [b.constant(0, "f32", plan.lanes)] * (len(lines) * plan.vectors)
        whole, rest = divmod(plan.groups, plan.together)
        with b.loop(b.index(0), b.index(whole), plan.chain, carried=zeros) as loop:
            found = self._chain(lines, base, loop.index, b.minimum(b.add(loop.index, plan.chain), whole))
            loop.yield_(added(b, loop.carried, found))
        if not rest:
            return loop.results
        last = self._word(lines, base, b.index(whole), rest, [zeros] * plan.sets)
        return added(b, loop.results, folded(b, [v for one in last for v in one], plan.sets))

    def _chain(self, lines: Sequence[Value], base: Value, first: Value, end: Value) -> list[Value]:
        """Of the groups of the words of positions from ``first`` to ``end``, which are whole."""
        b, plan = self.b, self.plan
        count = len(lines) * plan.vectors
        ahead = Ahead.stream(b, base, plan.run_words(plan.together) * WORD_BYTES)
        with b.loop(first, end, carried=[b.constant(0, "f32", plan.lanes)] * (count * plan.sets)) as loop:
            if self.target.fetches_streams:
                ahead.moved(b, loop.index).fetch(b, 1)
            sums = [loop.carried[s * count : (s + 1) * count] for s in range(plan.sets)]
            loop.yield_([v for one in self._word(lines, base, loop.index, plan.together, sums) for v in one])
        return folded(b, loop.results, plan.sets)

    def _word(self, lines: Sequence[Value], base: Value, word: Value, groups: int, sums: Sums) -> Sums:
        """``sums`` plus the products of the first ``groups`` groups of a word of positions; the sets take turns."""
        b, plan = self.b, self.plan
        at, found = b.element_pointer(base, b.mul(word, plan.run_words(plan.together)), "i32"), list(sums)
        places, first = self._vectors(at, 0), b.mul(word, plan.together * plan.m)
        for number in range(groups * plan.n):
            if number % plan.n == 0:
                k = b.add(first, number // plan.n * plan.m)
                tables = [self._group(b.element_pointer(line, k, self.element)) for line in lines]
            if number % plan.each == 0:
                words = self._vectors(at, 1 + number // plan.each)
            values = [self._value_of(w, number % plan.each) for w in words]
            indices = [self._shifted("arith.shrui", place, number * plan.bits) for place in places]
            factors = [permuted(b, table, index) for table in tables for index in indices]
            turn = number % plan.sets
            found[turn] = [
                b.op("math.fma", x, values[i % plan.vectors], total)
                for i, (x, total) in enumerate(zip(factors, found[turn], strict=True))
            ]
        return found

    def _vectors(self, at: Value, number: int) -> list[Value]:
        """The words number ``number`` of each column of a panel, which lie from ``at`` on."""
        b, plan = self.b, self.plan
        places = [b.index(number * plan.width + v * plan.lanes) for v in range(plan.vectors)]
        return [b.load(b.element_pointer(at, p, "i32"), vector_type(plan.lanes, "i32")) for p in places]

    def _value_of(self, word: Value, number: int) -> Value:
        """The value of that number in each word: all of it, or the lower or upper half."""
        b, lanes = self.b, self.plan.lanes
        if self.plan.each > 1 and number == 0:
            word = self._shifted("arith.shli", word, WORD // 2)
        elif number:
            word = b.op("arith.andi", word, b.constant(-1 << WORD // 2, "i32", lanes))
        return b.cast("arith.bitcast", word, "f32")

    def _group(self, pointer: Value) -> Value:
        """The elements of a group of a row, again and again: whatever the further bits of an index, it finds the one that it names."""
        b, m = self.b, self.plan.m
        found = b.load(pointer, vector_type(m, self.element))
        if self.form.dtype != "f32":
            found = to_f32(b, found, self.form.dtype, self.target)
        return b.shuffle(found, [i % m for i in range(self.plan.lanes)])

    def _shifted(self, op: str, word: Value, bits: int) -> Value:
        return self.b.op(op, word, self.b.constant(bits, "i32", self.plan.lanes)) if bits else word
