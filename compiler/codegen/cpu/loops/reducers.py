"""Accumulators of reductions: vectors that each iteration updates, merged and finished after the loop.

Long float sums are cascaded: blocks of ``BLOCK`` additions a lane (at most twice as many) run in the sum's own type and are
added to an f64 accumulator, so the error of a sum of any length stays at that of a block (torch's own cascade has four levels
in f32: aten/src/ATen/native/cpu/SumKernel.cpp).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from effc.compiler.codegen.cpu.combine import identity, operation
from effc.compiler.codegen.cpu.lowp import LOW_PRECISION, from_f32, to_f32
from effc.compiler.codegen.cpu.ops import OpEmitter
from effc.compiler.codegen.cpu.text import Builder, Value, split_type

#: Additions a lane in a row before the sum moves to f64, as many as torch's cascade has in a level: 64 would be 4 times as far off
#: as torch where few lanes share the sum, and no faster.
BLOCK = 16

Accumulator = list[Value]


@dataclass(frozen=True)
class Reducer:
    """One ``reduce`` of the body. ``dtype``: of the reduced values (for argmax/argmin of the compared ones)."""

    ops: OpEmitter
    kind: str
    dtype: str
    index_dtype: str = "i64"

    @property
    def b(self) -> Builder:
        return self.ops.b

    @property
    def compute(self) -> str:
        """The type of the accumulator: f32 for low precision."""
        return "f32" if self.dtype in LOW_PRECISION else self.dtype

    @property
    def is_float(self) -> bool:
        return self.compute in ("f32", "f64")

    @property
    def cascades(self) -> bool:
        return self.kind == "add" and self.is_float

    @property
    def finds_index(self) -> bool:
        return self.kind in ("argmax", "argmin")

    def identity(self, lanes: int, wide: bool) -> Accumulator:
        """The accumulator of nothing; ``wide`` for the f64 level of a cascade."""
        dtype = "f64" if wide and self.cascades else self.compute
        neutral = [self.b.constant(identity(self.kind, dtype), dtype, lanes)]
        if self.finds_index:
            neutral.append(self.b.constant((1 << (int(self.index_dtype[1:]) - 1)) - 1, self.index_dtype, lanes))
        return neutral

    def step(self, accumulator: Accumulator, values: Sequence[Value], mask: Value | None) -> Accumulator:
        """One more value (and index) a lane; lanes that ``mask`` switches off stay as they are."""
        if self.dtype in LOW_PRECISION:
            values = [to_f32(self.b, values[0], self.dtype, self.ops.target), *values[1:]]
        if mask is not None:
            neutral = self.identity(split_type(values[0].type)[0], False)
            values = [self.b.select(mask, v, n) for v, n in zip(values, neutral, strict=True)]
        return self.merge(accumulator, values)

    def merge(self, x: Accumulator, y: Sequence[Value]) -> Accumulator:
        """Both accumulators in one."""
        if self.finds_index:
            return self._merge_indexed(x, y)
        if self.is_float and self.kind in ("max", "min"):
            # The new value first: its test for NaN then does not wait for the accumulator.
            return [self.ops.extremum(self.kind == "max", y[0], x[0])]
        return [self.b.op(operation(self.kind, self.compute), x[0], y[0])]

    def widen(self, total: Accumulator, block: Accumulator) -> Accumulator:
        """The cascade's ``total`` with a finished block added; other kinds run on through blocks, their block is the
        total.
        """
        if not self.cascades:
            return block
        value = block[0] if self.compute == "f64" else self.b.cast("arith.extf", block[0], "f64")
        return [self.b.op("arith.addf", total[0], value)]

    def across(self, accumulator: Accumulator) -> Accumulator:
        """All lanes merged into one, pairwise."""
        lanes = split_type(accumulator[0].type)[0]
        while lanes > 1:
            half = lanes // 2
            low = [self.b.shuffle(a, range(half)) for a in accumulator]
            high = [self.b.shuffle(a, range(half, lanes)) for a in accumulator]
            accumulator, lanes = self.merge(low, high), half
        return accumulator

    def result(self, accumulator: Accumulator) -> Value:
        """The value of the ``reduce`` instruction, as the body holds it."""
        if self.finds_index:
            return accumulator[1]
        value = accumulator[0]
        if self.compute == "f32" and split_type(value.type)[1] == "f64":
            value = self.b.cast("arith.truncf", value, "f32")
        return from_f32(self.b, value, self.dtype, self.ops.target) if self.dtype in LOW_PRECISION else value

    # -- internals -----------------------------------------------------------------------------------------------------
    def _merge_indexed(self, x: Accumulator, y: Sequence[Value]) -> Accumulator:
        """The larger value, NaN above all; of equals the lower index."""
        b, largest = self.b, self.kind == "argmax"
        if self.is_float:
            better = b.compare("arith.cmpf", "ogt" if largest else "olt", y[0], x[0])
            same = b.compare("arith.cmpf", "oeq", y[0], x[0])
            x_nan, y_nan = (b.compare("arith.cmpf", "uno", v, v) for v in (x[0], y[0]))
            same = b.op("arith.ori", same, b.op("arith.andi", x_nan, y_nan))
            not_x = b.op("arith.xori", x_nan, b.constant(1, "i1", split_type(x_nan.type)[0]))
            better = b.op("arith.ori", better, b.op("arith.andi", y_nan, not_x))
        else:
            kind = ("ugt" if largest else "ult") if self.dtype == "i1" else ("sgt" if largest else "slt")
            better = b.compare("arith.cmpi", kind, y[0], x[0])
            same = b.compare("arith.cmpi", "eq", y[0], x[0])
        earlier = b.compare("arith.cmpi", "slt", y[1], x[1])
        take = b.op("arith.ori", better, b.op("arith.andi", same, earlier))
        return [b.select(take, new, old) for new, old in zip(y, x, strict=True)]
