"""Attention for a few queries (a decode step): one query at a time, lanes along the channels.

It is bound by reading k and v once, so each is read in rows, as it lies. ``lanes`` keys make a block: their products with q are
turned and added up to one vector of scores; the softmax is online, as in `attention_blocks`.
"""

from __future__ import annotations

from dataclasses import dataclass

from effc.compiler.codegen.cpu.addresses import scalar_expr
from effc.compiler.codegen.cpu.attention import Attention
from effc.compiler.codegen.cpu.attention_memory import Tensors
from effc.compiler.codegen.cpu.attention_softmax import Softmax
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.codegen.cpu.text import Builder, Value
from effc.compiler.codegen.cpu.threads import Share, parallel_kernel
from effc.compiler.codegen.cpu.transpose import transpose
from effc.compiler.ir.spec import ITEM_SIZE

#: Up to this many queries rows are faster: a key costs about 15 cycles a query here, and about 64 for up to ``lanes`` queries
#: in `attention_blocks` (64 channels, lanes of 16).
MOST_QUERIES = 4


def takes(attention: Attention, target: Target) -> bool:
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
    lanes = target.lanes(ITEM_SIZE[attention.accumulator])
    units = dims[0].size * dims[1].size * dims[2].size
    with parallel_kernel(b, attention.spec, units, dims[3].size * ((d + e) // lanes + 8)) as share:
        _Rows(b, attention, target, share, lanes).write()


@dataclass
class _Rows:
    b: Builder
    attention: Attention
    target: Target
    share: Share
    lanes: int

    def write(self) -> None:
        b = self.b
        self.tensors = Tensors(b, self.attention, self.target, self.share)
        self.softmax = Softmax(b, self.target, self.attention.accumulator)
        self.shares = b.stack(self.lanes, self.attention.accumulator)
        sizes = [scalar_expr(b, dim.size, self.share.symbols) for dim in self.attention.spec.dims]
        self.keys = sizes[3]
        with b.loop(self.share.lo, self.share.hi) as loop:
            outer = b.div(loop.index, sizes[2])
            at = {"d0": b.div(outer, sizes[1]), "d1": b.rem(outer, sizes[1]), "d2": b.rem(loop.index, sizes[2])}
            self._query(at)

    def _query(self, at: dict[str, Value]) -> None:
        b, t, kind = self.b, self.tensors, self.attention.accumulator
        d, e = self.attention.channels
        scale, zero = b.constant(self.attention.scale, kind, self.lanes), b.constant(0, kind, self.lanes)
        q = [b.op("arith.mulf", v, scale) for v in self._vectors("q", "d4", at, d)]
        seen = self.keys
        if self.attention.causal:
            seen = b.minimum(seen, b.add(at["d2"], 1))
        start = [b.constant("-inf", kind), zero, *([zero] * (e // self.lanes))]
        with b.loop(b.index(0), seen, self.lanes, start) as loop:
            running, total, *result = loop.carried
            score = self._scores(at, q, loop.index, seen)
            here = b.emit(f"vector.reduction <maxnumf>, {score.name} : {score.type} into {kind}", kind)
            highest = self.softmax.largest(here, running)
            shift = self._finite(highest)
            factor = b.broadcast(self.softmax.exp(b.op("arith.subf", running, shift)), self.lanes)
            share = self.softmax.exp(b.op("arith.subf", score, b.broadcast(shift, self.lanes)))
            total = b.op("math.fma", total, factor, share)
            values = self._values(at, share, loop.index, seen)
            result = [b.op("math.fma", r, factor, v) for r, v in zip(result, values, strict=True)]
            loop.yield_([highest, total, *result])
        highest, total, *result = loop.results
        whole = b.emit(f"vector.reduction <add>, {total.name} : {total.type} into {kind}", kind)
        nothing = b.compare("arith.cmpf", "oeq", whole, b.constant(0, kind))
        whole = b.select(nothing, b.constant(1, kind), whole)
        if self.attention.has("lse"):
            value = b.op("arith.addf", self._finite(highest), self.softmax.function("math.log", whole))
            t.store("lse", value, t.pointer("lse", at))
        inverse = b.broadcast(b.op("arith.divf", b.constant(1, kind), whole), self.lanes)
        for c, value in enumerate(result):
            place = t.pointer("out", {**at, "d5": b.index(c * self.lanes)})
            t.store("out", b.op("arith.mulf", value, inverse), place)

    def _vectors(self, name: str, dim: str, at: dict[str, Value], channels: int) -> list[Value]:
        line = self.tensors.pointer(name, at)
        return [
            self.tensors.load(name, self.tensors.step(name, line, dim, self.b.index(c)), self.lanes)
            for c in range(0, channels, self.lanes)
        ]

    def _key(self, first: Value, r: int, seen: Value) -> Value:
        """Key ``first + r``, or the last one: its share is 0 there."""
        return self.b.minimum(self.b.add(first, r), self.b.sub(seen, 1))

    def _scores(self, at: dict[str, Value], q: list[Value], first: Value, seen: Value) -> Value:
        """Scores of ``lanes`` keys, -inf for those that do not exist or are masked."""
        b, t, kind = self.b, self.tensors, self.attention.accumulator
        d, _ = self.attention.channels
        products = []
        for r in range(self.lanes):
            total = b.constant(0, kind, self.lanes)
            for x, y in zip(q, self._vectors("k", "d4", {**at, "d3": self._key(first, r, seen)}, d), strict=True):
                total = b.op("math.fma", x, y, total)
            products.append(total)
        columns = transpose(b, products)
        while len(columns) > 1:
            columns = [b.op("arith.addf", x, y) for x, y in zip(columns[::2], columns[1::2], strict=True)]
        score, lowest = columns[0], b.constant("-inf", kind, self.lanes)
        keys = b.op("arith.addi", b.broadcast(first, self.lanes), b.iota(self.lanes))
        last = b.broadcast(b.sub(seen, 1), self.lanes)
        if self.attention.has("mask"):
            clamped = b.op("arith.minsi", keys, last)
            mask = b.broadcast(t.load("mask", t.pointer("mask", {**at, "d3": clamped})), self.lanes)
            added = self.attention.dtype("mask") != "i1"
            score = b.op("arith.addf", score, mask) if added else b.select(mask, score, lowest)
        return b.select(b.compare("arith.cmpi", "sle", keys, last), score, lowest)

    def _values(self, at: dict[str, Value], share: Value, first: Value, seen: Value) -> list[Value]:
        """The sum of ``lanes`` keys' values by their shares, apart from those before: a chain of all would round too often."""
        b, kind = self.b, self.attention.accumulator
        _, e = self.attention.channels
        result = [b.constant(0, kind, self.lanes)] * (e // self.lanes)
        b.store(share, self.shares)
        for r in range(self.lanes):
            weight = b.broadcast(b.load(b.element_pointer(self.shares, b.index(r), kind), kind), self.lanes)
            rows = self._vectors("v", "d5", {**at, "d3": self._key(first, r, seen)}, e)
            result = [b.op("math.fma", weight, row, total) for row, total in zip(rows, result, strict=True)]
        return result

    def _finite(self, highest: Value) -> Value:
        b, kind = self.b, self.attention.accumulator
        none = b.compare("arith.cmpf", "oeq", highest, b.constant("-inf", kind))
        return b.select(none, b.constant(0, kind), highest)
