"""The state of online softmaxes in memory: of each row the results so far, their sum of exponentials and the maximum taken off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from effc.compiler.codegen.cpu.attention.softmax import Softmax
from effc.compiler.codegen.cpu.text import Builder, Value, vector_type


def state_bytes(rows: int, channels: int, lanes: int, size: int) -> int:
    """Bytes of ``rows`` states; each is ``channels`` results, then the sum, the maximum and a gap that keeps vectors whole."""
    return rows * (channels + lanes) * size


@dataclass
class States:
    """States from ``area`` on; rows are counted by an ``i64``."""

    b: Builder
    softmax: Softmax
    area: Value
    lanes: int
    channels: int

    def clear(self, row: Value) -> None:
        zero = self.b.constant(0, self.softmax.kind, self.lanes)
        for i in range(0, self.channels, self.lanes):
            self.b.store(zero, self._place(row, i))
        self.b.store(self.b.constant(0, self.softmax.kind), self._place(row, self.channels))
        self.b.store(self.b.constant("-inf", self.softmax.kind), self._place(row, self.channels + 1))

    def result(self, row: Value) -> list[Value]:
        vector = vector_type(self.lanes, self.softmax.kind)
        return [self.b.load(self._place(row, i), vector) for i in range(0, self.channels, self.lanes)]

    def total(self, row: Value) -> Value:
        return self.b.load(self._place(row, self.channels), self.softmax.kind)

    def highest(self, row: Value) -> Value:
        return self.b.load(self._place(row, self.channels + 1), self.softmax.kind)

    def add(self, row: Value, highest: Value, factor: Value, total: Value, values: Sequence[Value]) -> None:
        """Scale what is there by ``factor``, add ``total`` and ``values``, and note the new maximum."""
        b = self.b
        b.store(self.softmax.fma(self.total(row), factor, total), self._place(row, self.channels))
        b.store(highest, self._place(row, self.channels + 1))
        scale = b.broadcast(factor, self.lanes)
        for i, (before, value) in enumerate(zip(self.result(row), values, strict=True)):
            b.store(self.softmax.fma(before, scale, value), self._place(row, i * self.lanes))

    def _place(self, row: Value, element: int) -> Value:
        b, kind = self.b, self.softmax.kind
        start = b.element_pointer(self.area, b.mul(row, self.channels + self.lanes), kind)
        return b.element_pointer(start, b.index(element), kind)


def join(states: States, others: States, rows: int) -> None:
    """Add ``others``, which saw other keys of the same rows, to ``states``."""
    b, softmax = states.b, states.softmax
    with b.loop(b.index(0), b.index(rows)) as loop:
        row = loop.index
        mine, theirs = states.highest(row), others.highest(row)
        highest = softmax.largest(theirs, mine)
        shift = softmax.finite(highest)
        factor, weight = (softmax.exp(b.op("arith.subf", x, shift)) for x in (mine, theirs))
        total = b.op("arith.mulf", others.total(row), weight)
        scale = b.broadcast(weight, states.lanes)
        states.add(row, highest, factor, total, [b.op("arith.mulf", v, scale) for v in others.result(row)])
