"""Attention over blocks of queries: one lane a query.

Scores are kept transposed, ``[key][query]``: then a row's maximum and sum are elementwise over vectors, a key's channel is a scalar
that is broadcast from wherever k lies, and both products are the register tile of a matrix product whose right factor (q, then
the probabilities) lies in L1. Only q and the result are turned, once a block. The online softmax is that of FlashAttention
(Dao et al., 2022): a running maximum and sum a query, results rescaled when the maximum grows. Each block of keys is summed apart and
then added: in one chain over 4096 keys rounding errors reach 11 eps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from effc.compiler.codegen.cpu.addresses import scalar_expr
from effc.compiler.codegen.cpu.attention import KEYS, STACK_BYTES, Attention
from effc.compiler.codegen.cpu.attention_memory import Tensors
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.codegen.cpu.text import Builder, Value, vector_type
from effc.compiler.codegen.cpu.threads import Share, parallel_kernel
from effc.compiler.codegen.cpu.transpose import transpose
from effc.compiler.ir.expr import as_expr, floordiv
from effc.compiler.ir.spec import ITEM_SIZE

#: Steps of a sum in a loop's body.
_UNROLL = 4


def emit_blocks(b: Builder, attention: Attention, target: Target) -> None:
    size = ITEM_SIZE[attention.accumulator]
    lanes = target.lanes(size)
    d, e = attention.channels
    registers = 32 if target.vector_bytes == 64 else 16
    rows_of = {2: (registers - 3) // 2, 1: min((registers - 2), 14)}
    queries = attention.spec.dims[2].size
    fits = (d + e + KEYS + rows_of[2]) * 2 * lanes * size <= STACK_BYTES
    vectors = 2 if fits and (queries.constant is None or queries.constant > lanes) else 1
    block = vectors * lanes
    dims = attention.spec.dims
    units = dims[0].size * dims[1].size * floordiv(queries + (block - 1), as_expr(block))
    cycles = dims[3].size * ((d + e) * vectors // 2 + 16) + 16 * (d + e)
    with parallel_kernel(b, attention.spec, units, cycles) as share:
        _Blocks(b, attention, target, share, lanes, vectors, rows_of[vectors]).write()


@dataclass
class _Blocks:
    b: Builder
    attention: Attention
    target: Target
    share: Share
    lanes: int
    vectors: int
    rows: int

    def write(self) -> None:
        b, kind = self.b, self.attention.accumulator
        self.tensors = Tensors(b, self.attention, self.target, self.share)
        self.block = self.vectors * self.lanes
        self.type = vector_type(self.lanes, kind)
        d, e = self.attention.channels
        self.q = b.stack(d * self.block, kind)
        self.scores = b.stack((KEYS + self.rows) * self.block, kind)
        self.sums = b.stack(e * self.block, kind)
        sizes = [scalar_expr(b, dim.size, self.share.symbols) for dim in self.attention.spec.dims]
        self.queries, self.keys = sizes[2], sizes[3]
        blocks = b.div(b.add(self.queries, self.block - 1), self.block)
        with b.loop(self.share.lo, self.share.hi) as loop:
            first = b.mul(b.rem(loop.index, blocks), self.block)
            outer = b.div(loop.index, blocks)
            self._unit({"d0": b.div(outer, sizes[1]), "d1": b.rem(outer, sizes[1])}, first)

    def _unit(self, at: dict[str, Value], first: Value) -> None:
        b, kind, n = self.b, self.attention.accumulator, self.vectors
        # Lanes beyond the last query repeat it, and write the same values to the same places.
        last = b.sub(self.queries, 1)
        index = [b.broadcast(b.add(first, j * self.lanes), self.lanes) for j in range(n)]
        index = [b.op("arith.addi", v, b.iota(self.lanes)) for v in index]
        index = [b.op("arith.minsi", v, b.broadcast(last, self.lanes)) for v in index]
        self._pack_q(at, first, last, index)
        _, e = self.attention.channels
        with b.loop(b.index(0), b.index(e * self.block), self.lanes) as loop:
            b.store(b.constant(0, kind, self.lanes), b.element_pointer(self.sums, loop.index, kind))
        seen = self.keys
        if self.attention.causal:
            seen = b.minimum(seen, b.add(first, self.block))
        lowest = b.constant("-inf", kind, self.lanes)
        start = [*([lowest] * n), *([b.constant(0, kind, self.lanes)] * n)]
        with b.loop(b.index(0), seen, KEYS, start) as loop:
            count = b.minimum(b.sub(seen, loop.index), KEYS)
            highest = self._scores(at, loop.index, count, index)
            running, total = loop.carried[:n], loop.carried[n:]
            highest = [self.tensors.largest(x, y) for x, y in zip(highest, running, strict=True)]
            shift = [self._finite(v) for v in highest]
            factor = [self._exp(b.op("arith.subf", x, y)) for x, y in zip(running, shift, strict=True)]
            here = self._exponentials(count, shift)
            total = [b.op("math.fma", x, y, z) for x, y, z in zip(total, factor, here, strict=True)]
            self._accumulate(at, loop.index, count, factor)
            loop.yield_([*highest, *total])
        self._finish(at, first, last, index, loop.results[:n], loop.results[n:])

    # -- q and the result, turned -----------------------------------------------------------------------------------
    def _pack_q(self, at: dict[str, Value], first: Value, last: Value, index: list[Value]) -> None:
        """q scaled, as ``[channel][query]``."""
        b, t, kind = self.b, self.tensors, self.attention.accumulator
        d, _ = self.attention.channels
        scale = b.constant(self.attention.scale, kind, self.lanes)
        if t.contiguous("q", "d4") and d % self.lanes == 0:
            for j in range(self.vectors):
                lines = [self._line("q", at, first, last, j * self.lanes + r) for r in range(self.lanes)]
                with b.loop(b.index(0), b.index(d), self.lanes) as loop:
                    rows = [t.load("q", t.step("q", p, "d4", loop.index), self.lanes) for p in lines]
                    for r, column in enumerate(transpose(b, rows)):
                        self._put(self.q, b.add(loop.index, r), j, b.op("arith.mulf", column, scale))
            return
        with b.loop(b.index(0), b.index(d)) as loop:
            for j in range(self.vectors):
                value = t.load("q", t.pointer("q", {**at, "d2": index[j], "d4": loop.index}), self.lanes)
                self._put(self.q, loop.index, j, b.op("arith.mulf", value, scale))

    def _finish(
        self,
        at: dict[str, Value],
        first: Value,
        last: Value,
        index: list[Value],
        highest: list[Value],
        total: list[Value],
    ) -> None:
        """Divide by the sums and write the result; a query that saw nothing has sum 0 and result 0."""
        b, t, kind = self.b, self.tensors, self.attention.accumulator
        _, e = self.attention.channels
        zero, one = b.constant(0, kind, self.lanes), b.constant(1, kind, self.lanes)
        total = [b.select(b.compare("arith.cmpf", "oeq", v, zero), one, v) for v in total]
        inverse = [b.op("arith.divf", one, v) for v in total]
        if self.attention.has("lse"):
            for j in range(self.vectors):
                value = b.op("arith.addf", self._finite(highest[j]), t.math("math.log", total[j]))
                t.store("lse", value, t.pointer("lse", {**at, "d2": index[j]}))
        if t.contiguous("out", "d5") and e % self.lanes == 0:
            for j in range(self.vectors):
                lines = [self._line("out", at, first, last, j * self.lanes + r) for r in range(self.lanes)]
                with b.loop(b.index(0), b.index(e), self.lanes) as loop:
                    columns = [
                        b.op("arith.mulf", self._get(self.sums, b.add(loop.index, r), j), inverse[j])
                        for r in range(self.lanes)
                    ]
                    for p, row in zip(lines, transpose(b, columns), strict=True):
                        t.store("out", row, t.step("out", p, "d5", loop.index))
            return
        with b.loop(b.index(0), b.index(e)) as loop:
            for j in range(self.vectors):
                value = b.op("arith.mulf", self._get(self.sums, loop.index, j), inverse[j])
                t.store("out", value, t.pointer("out", {**at, "d2": index[j], "d5": loop.index}))

    def _line(self, name: str, at: dict[str, Value], first: Value, last: Value, r: int) -> Value:
        """Pointer to query ``first + r``, or to the last one."""
        return self.tensors.pointer(name, {**at, "d2": self.b.minimum(self.b.add(first, r), last)})

    # -- the two products -------------------------------------------------------------------------------------------
    def _scores(self, at: dict[str, Value], key: Value, count: Value, index: list[Value]) -> list[Value]:
        """Scores of ``count`` keys from ``key`` on, masked; returns their maxima."""
        b, t, kind = self.b, self.tensors, self.attention.accumulator
        d, _ = self.attention.channels
        lowest = [b.constant("-inf", kind, self.lanes)] * self.vectors
        with b.loop(b.index(0), count, self.rows, lowest) as loop:
            within = [b.minimum(b.add(loop.index, i), b.sub(count, 1)) for i in range(self.rows)]
            lines = [t.pointer("k", {**at, "d3": b.add(key, i)}) for i in within]
            sums = self._product(
                lambda i, c: t.load("k", t.step("k", lines[i], "d4", c)), self.q, self.rows, b.index(d)
            )
            highest = loop.carried
            for i, j in ((i, j) for i in range(self.rows) for j in range(self.vectors)):
                score = self._masked(sums[i * self.vectors + j], {**at, "d3": b.add(key, within[i])}, index[j])
                highest = [*highest[:j], t.largest(score, highest[j]), *highest[j + 1 :]]
                self._put(self.scores, b.add(loop.index, i), j, score)
            loop.yield_(highest)
        return loop.results

    def _masked(self, score: Value, at: dict[str, Value], query: Value) -> Value:
        b, t, kind = self.b, self.tensors, self.attention.accumulator
        lowest = b.constant("-inf", kind, self.lanes)
        if self.attention.has("mask"):
            mask = b.broadcast(t.load("mask", t.pointer("mask", {**at, "d2": query})), self.lanes)
            added = self.attention.dtype("mask") != "i1"
            score = b.op("arith.addf", score, mask) if added else b.select(mask, score, lowest)
        if self.attention.causal:
            visible = b.compare("arith.cmpi", "sle", b.broadcast(at["d3"], self.lanes), query)
            score = b.select(visible, score, lowest)
        return score

    def _exponentials(self, count: Value, shift: list[Value]) -> list[Value]:
        """Scores become probabilities (not yet divided); returns their sums."""
        b = self.b
        zero = [b.constant(0, self.attention.accumulator, self.lanes)] * self.vectors
        with b.loop(b.index(0), count, carried=zero) as loop:
            result = []
            for j in range(self.vectors):
                value = self._exp(b.op("arith.subf", self._get(self.scores, loop.index, j), shift[j]))
                self._put(self.scores, loop.index, j, value)
                result.append(b.op("arith.addf", loop.carried[j], value))
            loop.yield_(result)
        return loop.results

    def _accumulate(self, at: dict[str, Value], key: Value, count: Value, factor: list[Value]) -> None:
        """Results of the keys before, rescaled, plus probabilities times v."""
        _, e = self.attention.channels
        tiles = -(-e // self.rows)
        rows = -(-e // tiles)
        with self.b.loop(self.b.index(0), self.b.index(e // rows * rows), rows) as loop:
            self._results(at, key, count, factor, loop.index, rows)
        if e % rows:
            self._results(at, key, count, factor, self.b.index(e // rows * rows), e % rows)

    def _results(
        self, at: dict[str, Value], key: Value, count: Value, factor: list[Value], channel: Value, rows: int
    ) -> None:
        b, t = self.b, self.tensors
        line = t.pointer("v", {**at, "d3": key, "d5": channel})

        def scalar(i: int, position: Value) -> Value:
            return t.load("v", t.step("v", t.step("v", line, "d3", position), "d5", b.index(i)))

        sums = self._product(scalar, self.scores, rows, count)
        for i in range(rows):
            for j in range(self.vectors):
                before = self._get(self.sums, b.add(channel, i), j)
                total = b.op("math.fma", before, factor[j], sums[i * self.vectors + j])
                self._put(self.sums, b.add(channel, i), j, total)

    def _product(self, left: Callable[[int, Value], Value], right: Value, rows: int, steps: Value) -> list[Value]:
        """``sum over s of left(i, s) * right[s][j]``, flat."""
        b = self.b
        start = [b.constant(0, self.attention.accumulator, self.lanes)] * (rows * self.vectors)

        def add(position: Value, total: list[Value], count: int) -> list[Value]:
            for u in range(count):
                at = b.add(position, u)
                columns = [self._get(right, at, j) for j in range(self.vectors)]
                factors = [b.broadcast(left(i, at), self.lanes) for i in range(rows)]
                total = [
                    b.op("math.fma", factors[i], columns[j], total[i * self.vectors + j])
                    for i in range(rows)
                    for j in range(self.vectors)
                ]
            return total

        whole = b.mul(b.div(steps, _UNROLL), _UNROLL)
        with b.loop(b.index(0), whole, _UNROLL, start) as loop:
            loop.yield_(add(loop.index, loop.carried, _UNROLL))
        known = b.integer_of(steps)
        if known is not None:
            return add(whole, loop.results, known % _UNROLL)
        with b.loop(whole, steps, 1, loop.results) as rest:
            rest.yield_(add(rest.index, rest.carried, 1))
        return rest.results

    # -- scratch ----------------------------------------------------------------------------------------------------
    def _place(self, base: Value, row: Value, j: int) -> Value:
        b = self.b
        at = b.element_pointer(base, b.mul(row, self.block), self.attention.accumulator)
        return b.element_pointer(at, b.index(j * self.lanes), self.attention.accumulator)

    def _get(self, base: Value, row: Value, j: int) -> Value:
        return self.b.load(self._place(base, row, j), self.type)

    def _put(self, base: Value, row: Value, j: int, value: Value) -> None:
        self.b.store(value, self._place(base, row, j))

    def _exp(self, value: Value) -> Value:
        return self.tensors.math("math.exp", value)

    def _finite(self, highest: Value) -> Value:
        """The maximum to subtract: 0 where every score so far is -inf, whose difference with itself would be NaN."""
        b, kind = self.b, self.attention.accumulator
        none = b.compare("arith.cmpf", "oeq", highest, b.constant("-inf", kind, self.lanes))
        return b.select(none, b.constant(0, kind, self.lanes), highest)
