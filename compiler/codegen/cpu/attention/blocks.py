"""Attention over blocks of queries: one lane a query.

Scores are kept transposed, ``[key][query]``: then a row's maximum and sum are elementwise over vectors, a key's channel is a scalar
that is broadcast from wherever k lies, and both products are the register tile of a matrix product whose right factor (q, then
the probabilities) lies in L1. Only q, the result and a mask with a row for each query are turned. The online softmax is that of
FlashAttention (Dao et al., 2022): a running maximum and sum a query, results rescaled when the maximum grows. Each block of keys is
summed apart and then added: in one chain over 4096 keys rounding errors reach 11 eps.
"""

from __future__ import annotations

from dataclasses import dataclass

from effc.compiler.codegen.cpu.addresses import scalar_expr
from effc.compiler.codegen.cpu.attention.form import KEYS, STACK_BYTES, Attention
from effc.compiler.codegen.cpu.attention.memory import Tensors
from effc.compiler.codegen.cpu.attention.softmax import Softmax
from effc.compiler.codegen.cpu.attention.tiles import Scratch, Tiles
from effc.compiler.codegen.cpu.attention.turn import Queries
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.codegen.cpu.text import Builder, Value
from effc.compiler.codegen.cpu.threads import Share, parallel_kernel
from effc.compiler.ir.expr import as_expr, floordiv
from effc.compiler.ir.spec import ITEM_SIZE

#: Most keys, or channels of v, of a register tile: beside their sums a vector of each column and one broadcast stay in registers.
_ROWS = 12


def emit_blocks(b: Builder, attention: Attention, target: Target) -> None:
    size = ITEM_SIZE[attention.accumulator]
    lanes = target.lanes(size)
    d, e = attention.channels
    queries = attention.spec.dims[2].size
    fits = (d + e + KEYS + _ROWS) * 2 * lanes * size <= STACK_BYTES
    vectors = 2 if fits and (queries.constant is None or queries.constant > lanes) else 1
    block = vectors * lanes
    dims = attention.spec.dims
    units = dims[0].size * dims[1].size * floordiv(queries + (block - 1), as_expr(block))
    cycles = dims[3].size * ((d + e) * vectors // 2 + 16) + 16 * (d + e)
    with parallel_kernel(b, attention.spec, units, cycles) as share:
        _Blocks(b, attention, target, share, lanes, vectors).write()


@dataclass
class _Blocks:
    b: Builder
    attention: Attention
    target: Target
    share: Share
    lanes: int
    vectors: int

    def write(self) -> None:
        b, kind = self.b, self.attention.accumulator
        self.tensors = Tensors(b, self.attention, self.target, self.share)
        self.softmax = Softmax(b, self.target, kind)
        block = self.vectors * self.lanes
        d, e = self.attention.channels
        q, scores, sums = (b.stack(n * block, kind) for n in (d, KEYS + _ROWS, e))
        self.scratch = Scratch(b, kind, self.lanes, block, q, scores, sums)
        sizes = [scalar_expr(b, dim.size, self.share.symbols) for dim in self.attention.spec.dims]
        self.queries, self.keys = sizes[2], sizes[3]
        blocks = b.div(b.add(self.queries, block - 1), block)
        with b.loop(self.share.lo, self.share.hi) as loop:
            number, outer = b.rem(loop.index, blocks), b.div(loop.index, blocks)
            if self.attention.causal:
                number = self._balanced(number, blocks)
            self._block({"d0": b.div(outer, sizes[1]), "d1": b.rem(outer, sizes[1])}, b.mul(number, block))

    def _balanced(self, number: Value, blocks: Value) -> Value:
        """First, last, second, last but one…: the later a block, the more keys it sees, and threads take them in this order."""
        b = self.b
        half = b.div(number, 2)
        odd = b.compare("arith.cmpi", "ne", b.rem(number, 2), b.index(0))
        return b.select(odd, b.sub(b.sub(blocks, 1), half), half)

    def _block(self, at: dict[str, Value], first: Value) -> None:
        """The queries from ``first`` on: in fewer vectors where the last ones are few."""
        b = self.b
        known = b.integer_of(self.queries)
        left = None if known is None else (known - 1) % (self.vectors * self.lanes) + 1
        if self.vectors == 1 or (left is not None and left > self.lanes):
            self._unit(at, first, self.vectors)
            return
        few = b.compare("arith.cmpi", "sle", b.sub(self.queries, first), b.index(self.lanes))

        def narrow() -> list[Value]:
            self._unit(at, first, 1)
            return []

        def wide() -> list[Value]:
            self._unit(at, first, self.vectors)
            return []

        b.choose(few, (), narrow, wide)

    def _unit(self, at: dict[str, Value], first: Value, vectors: int) -> None:
        b, kind, scratch, softmax = self.b, self.attention.accumulator, self.scratch, self.softmax
        queries = Queries(b, self.attention, self.tensors, scratch, at, first, b.sub(self.queries, 1), vectors)
        rows = _ROWS if self.target.vector_bytes == 64 or vectors == 1 else _ROWS // 2
        tiles = Tiles(b, self.attention, self.tensors, softmax, scratch, vectors, rows)
        queries.pack()
        _, e = self.attention.channels
        with b.loop(b.index(0), b.index(e)) as loop:
            for j in range(vectors):
                scratch.put(scratch.sums, loop.index, j, b.constant(0, kind, self.lanes))
        seen = self.keys
        if self.attention.causal:
            seen = b.minimum(seen, b.add(first, vectors * self.lanes))
        lowest, zero = b.constant("-inf", kind, self.lanes), b.constant(0, kind, self.lanes)
        with b.loop(b.index(0), seen, KEYS, [*([lowest] * vectors), *([zero] * vectors)]) as loop:
            count = b.minimum(b.sub(seen, loop.index), KEYS)
            mask = _Mask(b, self.attention, self.tensors, queries, loop.index)
            mask.prepare(count)
            highest = tiles.scores(at, loop.index, count, mask.applied)
            running, total = loop.carried[:vectors], loop.carried[vectors:]
            highest = [softmax.largest(x, y) for x, y in zip(highest, running, strict=True)]
            shift = [softmax.finite(v) for v in highest]
            factor = [softmax.exp(b.op("arith.subf", x, y)) for x, y in zip(running, shift, strict=True)]
            here = self._exponentials(count, shift)
            total = [softmax.fma(x, y, z) for x, y, z in zip(total, factor, here, strict=True)]
            tiles.accumulate(at, loop.index, count, factor)
            loop.yield_([*highest, *total])
        self._finish(queries, loop.results[:vectors], loop.results[vectors:])

    def _exponentials(self, count: Value, shift: list[Value]) -> list[Value]:
        """Scores become probabilities (not yet divided); returns their sums."""
        b, scratch = self.b, self.scratch
        zero = [b.constant(0, scratch.kind, self.lanes)] * len(shift)
        with b.loop(b.index(0), count, carried=zero) as loop:
            result = []
            for j, largest in enumerate(shift):
                score = scratch.get(scratch.scores, loop.index, j)
                value = self.softmax.exp(b.op("arith.subf", score, largest))
                scratch.put(scratch.scores, loop.index, j, value)
                result.append(b.op("arith.addf", loop.carried[j], value))
            loop.yield_(result)
        return loop.results

    def _finish(self, queries: Queries, highest: list[Value], total: list[Value]) -> None:
        """Divide by the sums and write the result."""
        b, t, kind = self.b, self.tensors, self.attention.accumulator
        one = b.constant(1, kind, self.lanes)
        total = [self.softmax.divisor(v, nan_rows=self.attention.nan_rows) for v in total]
        if self.attention.has("lse"):
            for top, whole, index in zip(highest, total, queries.index, strict=True):
                value = b.op("arith.addf", self.softmax.finite(top), self.softmax.function("math.log", whole))
                t.store("lse", value, t.pointer("lse", {**queries.at, "d2": index}))
        queries.write([b.op("arith.divf", one, v) for v in total])


@dataclass
class _Mask:
    """What hides keys of one block of keys, from ``key`` on."""

    b: Builder
    attention: Attention
    tensors: Tensors
    queries: Queries
    key: Value

    def prepare(self, count: Value) -> None:
        """Bring a mask that lies in rows along the keys, one a query, to where its scores will stand."""
        if self._turned():
            self.queries.mask(self.key, count)

    def applied(self, score: Value, position: Value, j: int) -> Value:
        """The score of key ``key + position`` with the queries of vector ``j``, -inf where it is hidden."""
        b, t, kind = self.b, self.tensors, self.attention.accumulator
        lanes = self.queries.scratch.lanes
        key = b.add(self.key, position)
        if self._turned():
            scratch = self.queries.scratch
            score = b.op("arith.addf", score, scratch.get(scratch.scores, position, j))
        elif self.attention.has("mask"):
            at = {**self.queries.at, "d2": self.queries.index[j], "d3": key}
            mask = b.broadcast(t.added(t.load("mask", t.pointer("mask", at))), lanes)
            score = b.op("arith.addf", score, mask)
        if self.attention.causal:
            index = b.cast("arith.trunci", self.queries.index[j], "i32")
            visible = b.compare("arith.cmpi", "sle", b.broadcast(b.cast("arith.trunci", key, "i32"), lanes), index)
            score = b.select(visible, score, b.constant("-inf", kind, lanes))
        return score

    def _turned(self) -> bool:
        if not self.attention.has("mask") or not self.tensors.contiguous("mask", "d3"):
            return False
        rows = self.attention.address("mask").coefficient("d2")
        return rows is not None and bool(rows.terms)
