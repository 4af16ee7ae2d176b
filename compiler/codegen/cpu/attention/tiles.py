"""A block of queries at work: its scratch, and the register tiles of its two products.

Everything in scratch is turned, a lane a query: q ``[channel][query]``, scores ``[key][query]``, results ``[channel][query]``.
A tile holds ``rows`` keys (or channels of v) by ``vectors`` vectors of queries; its left factor is read one scalar a row from
wherever k or v lies, its right factor comes from scratch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from effc.compiler.codegen.cpu.attention.form import Attention
from effc.compiler.codegen.cpu.attention.memory import Tensors
from effc.compiler.codegen.cpu.attention.softmax import Softmax
from effc.compiler.codegen.cpu.text import Builder, Value, vector_type

#: Steps of a sum in a loop's body.
_UNROLL = 4
#: Most channels of one sum: over 256 in one chain rounding errors are twice those of torch's product.
_CHAIN = 128


@dataclass(frozen=True)
class Scratch:
    """Arrays on the stack, whose rows hold ``block`` queries."""

    b: Builder
    kind: str
    lanes: int
    block: int
    q: Value
    scores: Value
    sums: Value

    def place(self, base: Value, row: Value, j: int) -> Value:
        """Vector ``j`` of a row of one of the arrays."""
        at = self.b.element_pointer(base, self.b.mul(row, self.block), self.kind)
        return self.b.element_pointer(at, self.b.index(j * self.lanes), self.kind)

    def get(self, base: Value, row: Value, j: int) -> Value:
        return self.b.load(self.place(base, row, j), vector_type(self.lanes, self.kind))

    def put(self, base: Value, row: Value, j: int, value: Value) -> None:
        self.b.store(value, self.place(base, row, j))


@dataclass
class Tiles:
    """The two products for ``vectors`` vectors of queries. ``at``: values of ``d0`` and ``d1``."""

    b: Builder
    attention: Attention
    tensors: Tensors
    softmax: Softmax
    scratch: Scratch
    vectors: int
    rows: int

    def scores(
        self, at: dict[str, Value], key: Value, count: Value, finished: Callable[[Value, Value, int], Value]
    ) -> list[Value]:
        """Put the scores of ``count`` keys from ``key`` on into scratch; their maxima, one a lane.

        ``finished(score, position, j)`` gives the masked score of the key ``key + position``. Rows up to the next multiple of
        ``rows`` may be written.
        """
        b = self.b
        lowest = [b.constant("-inf", self.scratch.kind, self.scratch.lanes)] * self.vectors
        whole = b.mul(b.div(count, self.rows), self.rows)
        last = b.sub(count, 1)
        with b.loop(b.index(0), whole, self.rows, lowest) as loop:
            line = self.tensors.pointer("k", {**at, "d3": b.add(key, loop.index)})
            lines = [self.tensors.step("k", line, "d3", b.index(i)) for i in range(self.rows)]
            places = [b.add(loop.index, i) for i in range(self.rows)]
            loop.yield_(self._score_tile(lines, places, loop.carried, finished))

        def rest(rows: int) -> list[Value]:
            places = [b.minimum(b.add(whole, i), last) for i in range(rows)]  # the last key again where there is none
            lines = [self.tensors.pointer("k", {**at, "d3": b.add(key, place)}) for place in places]
            return self._score_tile(lines, places, loop.results, finished)

        types = [v.type for v in lowest]
        left = b.sub(count, whole)
        half = (self.rows + 1) // 2
        return b.choose(
            b.compare("arith.cmpi", "sgt", left, b.index(half)),
            types,
            lambda: rest(self.rows),
            lambda: b.choose(
                b.compare("arith.cmpi", "sgt", left, b.index(0)), types, lambda: rest(half), lambda: loop.results
            ),
        )

    def _score_tile(
        self,
        lines: Sequence[Value],
        places: Sequence[Value],
        highest: Sequence[Value],
        finished: Callable[[Value, Value, int], Value],
    ) -> list[Value]:
        b, t, scratch = self.b, self.tensors, self.scratch
        d, _ = self.attention.channels
        sums: list[Value] = []
        for first in range(0, d, _CHAIN):

            def scalar(i: int, channel: Value, first: int = first) -> Value:
                return t.load("k", t.step("k", lines[i], "d4", b.add(channel, first)))

            q = scratch.place(scratch.q, b.index(first), 0)
            part = self._product(scalar, q, len(lines), b.index(min(_CHAIN, d - first)))
            sums = [b.op("arith.addf", x, y) for x, y in zip(sums, part, strict=True)] if sums else part
        # All masks before the first store: a key that stands for missing ones comes again, and its mask lies where its score goes.
        found = [
            [finished(sums[i * self.vectors + j], p, j) for j in range(self.vectors)] for i, p in enumerate(places)
        ]
        highest = list(highest)
        for place, scores in zip(places, found, strict=True):
            for j, score in enumerate(scores):
                highest[j] = self.softmax.largest(score, highest[j])
                scratch.put(scratch.scores, place, j, score)
        return highest

    def accumulate(self, at: dict[str, Value], key: Value, count: Value, factor: Sequence[Value]) -> None:
        """Results of the keys before, times ``factor``, plus probabilities times v."""
        b = self.b
        _, e = self.attention.channels
        tiles = -(-e // self.rows)
        rows = -(-e // tiles)
        with b.loop(b.index(0), b.index(e // rows * rows), rows) as loop:
            self._result_tile(at, key, count, factor, loop.index, rows)
        if e % rows:
            self._result_tile(at, key, count, factor, b.index(e // rows * rows), e % rows)

    def _result_tile(
        self, at: dict[str, Value], key: Value, count: Value, factor: Sequence[Value], channel: Value, rows: int
    ) -> None:
        b, t, scratch = self.b, self.tensors, self.scratch
        line = t.pointer("v", {**at, "d3": key, "d5": channel})

        def scalar(i: int, position: Value) -> Value:
            return t.load("v", t.step("v", t.step("v", line, "d3", position), "d5", b.index(i)))

        sums = self._product(scalar, scratch.scores, rows, count)
        for i in range(rows):
            for j in range(self.vectors):
                before = scratch.get(scratch.sums, b.add(channel, i), j)
                total = self.softmax.fma(before, factor[j], sums[i * self.vectors + j])
                scratch.put(scratch.sums, b.add(channel, i), j, total)

    def _product(self, left: Callable[[int, Value], Value], right: Value, rows: int, steps: Value) -> list[Value]:
        """``sum over s of left(i, s) * right[s][j]``, flat."""
        b, scratch, n = self.b, self.scratch, self.vectors
        start = [b.constant(0, scratch.kind, scratch.lanes)] * (rows * n)

        def add(position: Value, total: Sequence[Value], count: int) -> list[Value]:
            total = list(total)
            for u in range(count):
                at = b.add(position, u)
                columns = [scratch.get(right, at, j) for j in range(n)]
                for i in range(rows):
                    factor = b.broadcast(left(i, at), scratch.lanes)
                    for j in range(n):
                        total[i * n + j] = self.softmax.fma(factor, columns[j], total[i * n + j])
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
