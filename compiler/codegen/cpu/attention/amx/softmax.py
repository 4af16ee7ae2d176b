"""The softmax between two products of tiles: a row of scores is a query's, lanes are its keys."""

from __future__ import annotations

from dataclasses import dataclass

from effc.compiler.codegen.cpu import amx
from effc.compiler.codegen.cpu.attention.amx.stack import (
    LANES,
    QUERIES,
    STEP,
    Areas,
    State,
    load_lanes,
    load_splat,
)
from effc.compiler.codegen.cpu.attention.form import Attention
from effc.compiler.codegen.cpu.attention.memory import Tensors
from effc.compiler.codegen.cpu.attention.softmax import Softmax
from effc.compiler.codegen.cpu.mathlib.exponential import LOG2E
from effc.compiler.codegen.cpu.text import Builder, Value
from effc.compiler.codegen.cpu.transpose import transposed_fold, transposed_sum
from effc.compiler.ir.spec import Instr

_ROUND = Instr("arith.truncf", (0,), "bf16")


@dataclass
class RowSoftmax:
    """Of ``height`` queries from ``start`` on, with ``count`` keys from ``key`` on; ``at``: values of ``d0`` and ``d1``."""

    b: Builder
    attention: Attention
    tensors: Tensors
    softmax: Softmax
    areas: Areas
    at: dict[str, Value]
    start: Value
    height: Value
    key: Value
    count: Value

    def write(self, state: State) -> None:
        """Scores become probabilities (not yet divided) in bf16; ``state`` is brought up to the new maxima, its results too."""
        b = self.b
        self._maxima()
        for first in range(0, QUERIES, LANES):
            here = transposed_fold(b, self._partials(first), self.softmax.largest)
            running = load_lanes(b, state.highest, first)
            highest = self.softmax.largest(here, running)
            log2e = b.constant(LOG2E, "f32", LANES)
            shift = b.op("arith.mulf", self.softmax.finite(highest), log2e)
            factor = self.softmax.exp2(b.op("arith.subf", b.op("arith.mulf", running, log2e), shift))
            for value, base in ((highest, state.highest), (shift, self.areas.shift), (factor, self.areas.factor)):
                b.store(value, b.element_pointer(base, b.index(first), "f32"))
        with b.when(b.compare("arith.cmpi", "sgt", self.key, b.index(0))):
            self._rescale(state)
        self._exponentials()
        for first in range(0, QUERIES, LANES):
            here, total = transposed_sum(b, self._partials(first)), load_lanes(b, state.total, first)
            total = self.softmax.fma(total, load_lanes(b, self.areas.factor, first), here)
            b.store(total, b.element_pointer(state.total, b.index(first), "f32"))

    def _partials(self, first: int) -> list[Value]:
        return [load_lanes(self.b, self.areas.partial, (first + r) * LANES) for r in range(amx.ROWS)]

    def _seen(self, row: Value) -> Value:
        """How many of the keys the query of ``row`` sees."""
        b = self.b
        if not self.attention.causal:
            return self.count
        before = b.sub(b.add(b.add(self.start, row), 1), self.key)
        return b.maximum(b.minimum(before, self.count), 0)

    def _maxima(self) -> None:
        """Finished scores, and the largest of each row by lanes; what a row does not see is left as it is, or -inf."""
        b = self.b
        lowest = [b.constant("-inf", "f32", LANES)] * (STEP // LANES)
        with b.loop(b.index(0), self.height) as row:
            seen, line = self._seen(row.index), self.areas.score_row(row.index)
            whole = b.mul(b.div(seen, STEP), STEP)
            with b.loop(b.index(0), whole, STEP, lowest) as loop:
                loop.yield_(self._finished(row.index, line, loop.index, None, loop.carried))
            with b.loop(whole, seen, STEP, loop.results) as rest:  # once, or not at all
                rest.yield_(self._finished(row.index, line, rest.index, seen, rest.carried))
            b.store(self.softmax.largest(*rest.results), self.areas.partial_row(row.index))

    def _finished(self, row: Value, line: Value, first: Value, seen: Value | None, best: list[Value]) -> list[Value]:
        """A step of scores from key ``first`` on, times the scale and masked; where ``seen`` is given, -inf from there on."""
        b, found = self.b, []
        scale = b.constant(self.attention.scale, "f32", LANES)
        for j, highest in enumerate(best):
            position = b.add(first, j * LANES)
            place = b.element_pointer(line, position, "f32")
            score = b.op("arith.mulf", load_lanes(b, place), scale)
            within = None if seen is None else b.first_lanes(LANES, b.sub(seen, position))
            if self.attention.has("mask"):
                score = b.op("arith.addf", score, self._mask(row, position, within))
            if within is not None:
                score = b.select(within, score, b.constant("-inf", "f32", LANES))
            b.store(score, place)
            found.append(self.softmax.largest(score, highest))
        return found

    def _mask(self, row: Value, position: Value, within: Value | None) -> Value:
        """What is added to the scores of keys from ``position`` of the block on, where ``within`` holds."""
        b, t = self.b, self.tensors
        at = {**self.at, "d2": b.add(self.start, row)}
        key = b.add(self.key, position)
        if t.contiguous("mask", "d3"):
            pointer = t.pointer("mask", {**at, "d3": key})
            values = t.load("mask", pointer, LANES) if within is None else t.load_first("mask", pointer, within)
        else:
            keys = b.op("arith.addi", b.broadcast(key, LANES), b.iota(LANES))
            last = b.broadcast(b.sub(b.add(self.key, self.count), 1), LANES)
            keys = b.op("arith.minsi", keys, last)
            values = b.broadcast(t.load("mask", t.pointer("mask", {**at, "d3": keys})), LANES)
        return t.added(values)

    def _rescale(self, state: State) -> None:
        b = self.b
        with b.loop(b.index(0), self.height) as row:
            factor = load_splat(b, self.areas.factor, row.index)
            for place in state.vectors(row.index):
                b.store(b.op("arith.mulf", load_lanes(b, place), factor), place)

    def _exponentials(self) -> None:
        """Probabilities, in whole steps: zeros follow those that a row sees. Their sums by lanes are those before rounding."""
        b, zero, log2e = self.b, self.b.constant(0, "f32", LANES), self.b.constant(LOG2E, "f32", LANES)
        steps = b.div(b.add(self.count, STEP - 1), STEP)
        with b.loop(b.index(0), self.height) as row:
            line, minus = (
                self.areas.score_row(row.index),
                b.op("arith.negf", load_splat(b, self.areas.shift, row.index)),
            )
            seen = b.div(b.add(self._seen(row.index), STEP - 1), STEP)
            with b.loop(b.index(0), seen, 1, [zero, zero]) as loop:
                at = b.mul(loop.index, STEP)
                sums = []
                for j, total in enumerate(loop.carried):
                    score = load_lanes(b, b.element_pointer(line, at, "f32"), j * LANES)
                    value = self.softmax.exp2(self.softmax.fma(score, log2e, minus))
                    rounded = self.tensors.ops.emit(_ROUND, [value], ["f32"])
                    b.store(rounded, b.element_pointer(line, b.add(at, j * LANES), "i16"))
                    sums.append(b.op("arith.addf", total, value))
                loop.yield_(sums)
            b.store(b.op("arith.addf", *loop.results), self.areas.partial_row(row.index))
            with b.loop(seen, steps) as hidden:
                b.store(b.constant(0, "i16", STEP), b.element_pointer(line, b.mul(hidden.index, STEP), "i16"))
