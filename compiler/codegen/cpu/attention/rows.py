"""Attention for a few queries (a decode step): one query at a time, lanes along the channels.

It is bound by reading k and v once, so both are read in rows, as they lie, a chunk of keys at a time; all queries that share them
(those of a group of heads too) take their turn while the chunk is in L1. The softmax is online, as in `blocks`. Threads share
chunks, not heads: a head that falls to several of them leaves a state each (`state`), which the kernel's end joins.
"""

from __future__ import annotations

from dataclasses import dataclass

from effc.compiler.codegen.cpu.addresses import scalar_expr
from effc.compiler.codegen.cpu.attention.form import Attention
from effc.compiler.codegen.cpu.attention.memory import Tensors
from effc.compiler.codegen.cpu.attention.softmax import Softmax
from effc.compiler.codegen.cpu.attention.state import States, join, state_bytes
from effc.compiler.codegen.cpu.bf16_pairs import PAIRED, dot_pairs, halves, has_pairs, interleaved, load_pairs
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.codegen.cpu.text import Builder, Value, vector_type
from effc.compiler.codegen.cpu.threads import MAX_PARTIALS, Share, parallel_kernel
from effc.compiler.codegen.cpu.transpose import transposed_sum
from effc.compiler.ir.expr import as_expr, floordiv
from effc.compiler.ir.spec import ITEM_SIZE

#: Up to this many queries rows are faster: a key costs about 8 cycles a query here, and about 64 for up to ``lanes`` queries
#: in `blocks` (64 channels, lanes of 16).
MOST_QUERIES = 4
#: Keys of a chunk: k and v of 64 channels in f32 take 32 KiB.
_CHUNK = 64
#: Bytes of stack for the states of all threads' split heads.
_STATES = 60 * 1024
#: Independent chains of sums that hide the latency of an fma.
_CHAINS = 8


def takes_rows(attention: Attention, target: Target) -> bool:
    """Whether there are few queries, and channels that fill vectors and are contiguous."""
    lanes = target.lanes(ITEM_SIZE[attention.accumulator])
    queries = attention.spec.dims[2].size.constant
    if queries is None or queries > MOST_QUERIES or any(c % lanes for c in attention.channels):
        return False
    factors = [attention.address(n).coefficient(d) for n, d in (("q", "d4"), ("k", "d4"), ("v", "d5"), ("out", "d5"))]
    return all(f is not None and f.constant == 1 for f in factors)


def emit_rows(b: Builder, attention: Attention, target: Target) -> None:
    dims = attention.spec.dims
    d, e = attention.channels
    size = ITEM_SIZE[attention.accumulator]
    lanes = target.lanes(size)
    queries = dims[2].size.constant
    assert queries is not None, "takes_rows() admits only a known number"
    rows = queries * attention.group
    partial = 2 * state_bytes(rows, e, lanes, size)
    splits = partial * MAX_PARTIALS <= _STATES
    chunks = floordiv(dims[3].size + (_CHUNK - 1), as_expr(_CHUNK)) if splits else as_expr(1)
    heads = floordiv(dims[1].size, as_expr(attention.group))
    arithmetic = rows * ((d + e) // (2 * lanes) + 5)
    reading = (d + e) * ITEM_SIZE[attention.dtype("k")] // 16
    cycles = as_expr((arithmetic + reading) * _CHUNK) if splits else dims[3].size * (arithmetic + reading)

    def finish(share: Share) -> None:
        kernel = _Rows(b, attention, target, share, lanes, rows, splits)
        kernel.finish()

    units = dims[0].size * heads * chunks
    with parallel_kernel(
        b, attention.spec, units, cycles, partial if splits else 0, finish if splits else None
    ) as share:
        _Rows(b, attention, target, share, lanes, rows, splits).write()


@dataclass
class _Rows:
    """``rows``: queries that share keys; ``splits``: whether a head's chunks may fall to several threads."""

    b: Builder
    attention: Attention
    target: Target
    share: Share
    lanes: int
    rows: int
    splits: bool

    def __post_init__(self) -> None:
        b, dims, symbols = self.b, self.attention.spec.dims, self.share.symbols
        self.tensors = Tensors(b, self.attention, self.target, self.share)
        self.softmax = Softmax(b, self.target, self.attention.accumulator)
        self.vector = vector_type(self.lanes, self.attention.accumulator)
        d, e = self.attention.channels
        self.dots = has_pairs([self.attention.dtype(n) for n in ("q", "k")], d, self.target)
        #: Results then stand apart: of each 32 channels the even ones, then the odd ones.
        self.halved = has_pairs([self.attention.dtype("v")], e, self.target)
        self.heads, self.keys = scalar_expr(b, dims[1].size, symbols), scalar_expr(b, dims[3].size, symbols)
        self.chunks = b.div(b.add(self.keys, _CHUNK - 1), _CHUNK)
        self.size = state_bytes(
            self.rows, self.attention.channels[1], self.lanes, ITEM_SIZE[self.attention.accumulator]
        )

    def write(self) -> None:
        b = self.b
        self.scores = b.stack(_CHUNK, self.attention.accumulator)
        lo, hi = self.share.lo, self.share.hi
        if not self.splits:
            states = self._states(b.stack(self.size, "i8"))
            with b.loop(lo, hi) as loop:
                self._head(loop.index, states, b.index(0), self.chunks)
                self._write(loop.index, states)
            return
        area = b.element_pointer(self.share.partials, b.mul(self.share.index, 2 * self.size), "i8")
        with b.loop(b.div(lo, self.chunks), b.div(b.add(hi, b.sub(self.chunks, 1)), self.chunks)) as loop:
            first = b.mul(loop.index, self.chunks)
            start = b.maximum(b.sub(lo, first), 0)
            end = b.minimum(b.sub(hi, first), self.chunks)
            # A head that began with another thread has the first place, one that ends with another, or that is whole, the second.
            began = b.compare("arith.cmpi", "sgt", start, b.index(0))
            place = b.select(began, b.index(0), b.index(self.size))
            states = self._states(b.element_pointer(area, place, "i8"))
            self._head(loop.index, states, start, end)
            with b.when(b.compare("arith.cmpi", "eq", b.sub(end, start), self.chunks)):
                self._write(loop.index, states)

    def finish(self) -> None:
        """Join the states of heads whose chunks fell to several threads; ``share.hi`` is the number of shares."""
        b, shares = self.b, self.share.hi
        batch = scalar_expr(b, self.attention.spec.dims[0].size, self.share.symbols)
        total = b.mul(b.mul(batch, b.div(self.heads, self.attention.group)), self.chunks)

        def bound(share: Value) -> Value:
            return b.div(b.mul(total, share), shares)

        with b.loop(b.index(0), shares) as loop:
            lo, hi = bound(loop.index), bound(b.add(loop.index, 1))
            head = b.div(hi, self.chunks)
            first = b.mul(head, self.chunks)
            begins = b.compare("arith.cmpi", "sge", first, lo)
            goes_on = b.compare("arith.cmpi", "sgt", hi, first)
            with b.when(b.op("arith.andi", begins, goes_on)):
                area = b.element_pointer(self.share.partials, b.mul(loop.index, 2 * self.size), "i8")
                states = self._states(b.element_pointer(area, b.index(self.size), "i8"))
                with b.loop(b.add(loop.index, 1), shares) as others:
                    takes_part = b.compare("arith.cmpi", "slt", bound(others.index), b.add(first, self.chunks))
                    with b.when(takes_part):
                        other = b.element_pointer(self.share.partials, b.mul(others.index, 2 * self.size), "i8")
                        join(states, self._states(other), self.rows)
                self._write(head, states)

    def _states(self, area: Value) -> States:
        return States(self.b, self.softmax, area, self.lanes, self.attention.channels[1])

    # -- one group of heads -----------------------------------------------------------------------------------------
    def _row(self, head: Value, row: Value) -> dict[str, Value]:
        """``d0``, ``d1`` and ``d2`` of a row of the group of heads number ``head``."""
        b, group = self.b, self.attention.group
        groups = b.div(self.heads, group)
        queries = self.rows // group
        member = b.div(row, queries)
        return {
            "d0": b.div(head, groups),
            "d1": b.add(b.mul(b.rem(head, groups), group), member),
            "d2": b.rem(row, queries),
        }

    def _head(self, head: Value, states: States, start: Value, end: Value) -> None:
        """Chunks ``start`` to ``end`` of a head's keys, for all its rows."""
        b = self.b
        with b.loop(b.index(0), b.index(self.rows)) as loop:
            states.clear(loop.index)
        with b.loop(start, end) as chunk:
            key = b.mul(chunk.index, _CHUNK)
            with b.loop(b.index(0), b.index(self.rows)) as loop:
                at = self._row(head, loop.index)
                seen = self.keys
                if self.attention.causal:
                    seen = b.minimum(seen, b.add(at["d2"], 1))
                count = b.maximum(b.minimum(b.sub(seen, key), _CHUNK), 0)
                self._chunk(at, key, count, states, loop.index)

    def _chunk(self, at: dict[str, Value], key: Value, count: Value, states: States, row: Value) -> None:
        b, kind, softmax = self.b, self.attention.accumulator, self.softmax
        start = b.constant("-inf", kind, self.lanes)
        with b.loop(b.index(0), count, self.lanes, [start]) as loop:
            score = self._scores(at, key, loop.index, count)
            b.store(score, b.element_pointer(self.scores, loop.index, kind))
            loop.yield_([softmax.largest(score, loop.carried[0])])
        top = loop.results[0]
        here = b.emit(f"vector.reduction <maxnumf>, {top.name} : {top.type} into {kind}", kind)
        running = states.highest(row)
        highest = softmax.largest(here, running)
        shift = softmax.finite(highest)
        with b.loop(b.index(0), count, self.lanes, [b.constant(0, kind, self.lanes)]) as loop:
            place = b.element_pointer(self.scores, loop.index, kind)
            share = softmax.exp(b.op("arith.subf", b.load(place, self.vector), b.broadcast(shift, self.lanes)))
            b.store(share, place)
            loop.yield_([b.op("arith.addf", loop.carried[0], share)])
        whole = loop.results[0]
        total = b.emit(f"vector.reduction <add>, {whole.name} : {whole.type} into {kind}", kind)
        factor = softmax.exp(b.op("arith.subf", running, shift))
        states.add(row, highest, factor, total, self._values(at, key, count))

    def _scores(self, at: dict[str, Value], key: Value, first: Value, count: Value) -> Value:
        """Scores of ``lanes`` keys from ``key + first`` on, -inf for those that are hidden or beyond ``count``."""
        b, t, kind = self.b, self.tensors, self.attention.accumulator
        left = b.sub(count, first)
        enough = b.compare("arith.cmpi", "sge", left, b.index(self.lanes))
        line = t.pointer("k", {**at, "d3": b.add(key, first)})

        def products(positions: list[Value]) -> Value:
            lines = [t.step("k", line, "d3", p) for p in positions]
            query = t.pointer("q", at)
            sums = [b.constant(0, kind, self.lanes)] * self.lanes
            for c in range(0, self.attention.channels[0], PAIRED if self.dots else self.lanes):
                channel = b.index(c)
                place = t.step("q", query, "d4", channel)
                places = [t.step("k", p, "d4", channel) for p in lines]
                if self.dots:
                    pairs = load_pairs(b, place)
                    sums = [dot_pairs(b, s, pairs, load_pairs(b, p)) for p, s in zip(places, sums, strict=True)]
                else:
                    q = t.load("q", place, self.lanes)
                    sums = [
                        self.softmax.fma(q, t.load("k", p, self.lanes), s) for p, s in zip(places, sums, strict=True)
                    ]
            return transposed_sum(b, sums)

        def all_there() -> list[Value]:
            return [products([b.index(r) for r in range(self.lanes)])]

        def some() -> list[Value]:
            last = b.sub(left, 1)
            score = products([b.minimum(b.index(r), last) for r in range(self.lanes)])
            return [b.select(b.first_lanes(self.lanes, left), score, b.constant("-inf", kind, self.lanes))]

        score = b.choose(enough, [self.vector], all_there, some)[0]
        score = b.op("arith.mulf", score, b.constant(self.attention.scale, kind, self.lanes))
        if self.attention.has("mask"):
            position = b.op("arith.addi", b.broadcast(b.add(key, first), self.lanes), b.iota(self.lanes))
            clamped = b.op("arith.minsi", position, b.broadcast(b.sub(b.add(key, count), 1), self.lanes))
            mask = b.broadcast(t.added(t.load("mask", t.pointer("mask", {**at, "d3": clamped}))), self.lanes)
            score = b.op("arith.addf", score, mask)
        return score

    def _values(self, at: dict[str, Value], key: Value, count: Value) -> list[Value]:
        """The sum of ``count`` keys' values by their shares, apart from those before: a chain of all would round too often."""
        b, t, kind = self.b, self.tensors, self.attention.accumulator
        vectors = self.attention.channels[1] // self.lanes
        chains = max(1, _CHAINS // vectors)
        line = t.pointer("v", {**at, "d3": key})

        def add(position: Value, sums: list[Value]) -> list[Value]:
            share = b.broadcast(b.load(b.element_pointer(self.scores, position, kind), kind), self.lanes)
            row = t.step("v", line, "d3", position)
            step = PAIRED if self.halved else self.lanes
            places = [t.step("v", row, "d5", b.index(c)) for c in range(0, vectors * self.lanes, step)]
            if self.halved:
                values = [half for p in places for half in halves(b, load_pairs(b, p))]
            else:
                values = [t.load("v", p, self.lanes) for p in places]
            return [self.softmax.fma(share, v, s) for v, s in zip(values, sums, strict=True)]

        whole = b.mul(b.div(count, chains), chains)
        with b.loop(b.index(0), whole, chains, [b.constant(0, kind, self.lanes)] * (chains * vectors)) as loop:
            found: list[Value] = []
            for u in range(chains):
                found += add(b.add(loop.index, u), loop.carried[u * vectors : (u + 1) * vectors])
            loop.yield_(found)
        sums = loop.results[:vectors]
        for u in range(1, chains):
            part = loop.results[u * vectors : (u + 1) * vectors]
            sums = [b.op("arith.addf", x, y) for x, y in zip(sums, part, strict=True)]
        with b.loop(whole, count, 1, sums) as rest:
            rest.yield_(add(rest.index, rest.carried))
        return rest.results

    # -- the result -------------------------------------------------------------------------------------------------
    def _write(self, head: Value, states: States) -> None:
        """Divide by the sums and write."""
        b, t, kind = self.b, self.tensors, self.attention.accumulator
        with b.loop(b.index(0), b.index(self.rows)) as loop:
            at = self._row(head, loop.index)
            whole = self.softmax.divisor(states.total(loop.index), nan_rows=self.attention.nan_rows)
            if self.attention.has("lse"):
                highest = self.softmax.finite(states.highest(loop.index))
                value = b.op("arith.addf", highest, self.softmax.function("math.log", whole))
                t.store("lse", value, t.pointer("lse", at))
            inverse = b.broadcast(b.op("arith.divf", b.constant(1, kind), whole), self.lanes)
            line = t.pointer("out", at)
            result = states.result(loop.index)
            if self.halved:
                result = [v for i in range(0, len(result), 2) for v in interleaved(b, *result[i : i + 2])]
            for i, value in enumerate(result):
                place = t.step("out", line, "d5", b.index(i * self.lanes))
                t.store("out", b.op("arith.mulf", value, inverse), place)
