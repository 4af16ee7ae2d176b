"""The register tile of a few rows and a packed factor of codes, which become floats in registers."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from effc.compiler.codegen.cpu.access import memory_type
from effc.compiler.codegen.cpu.bf16_pairs import PAIRED, dot_pairs
from effc.compiler.codegen.cpu.contraction.factors import Step
from effc.compiler.codegen.cpu.contraction.sides import Grain
from effc.compiler.codegen.cpu.contraction.tile import Accumulators, Tile
from effc.compiler.codegen.cpu.low_bit import Decoder
from effc.compiler.codegen.cpu.lowp import bits_of
from effc.compiler.codegen.cpu.text import Builder, Value, vector_type
from effc.compiler.ir.expr import const


@dataclass(frozen=True)
class Codes:
    """How the right factor's codes become floats. ``zero``, ``scale``: pointers to the panel's first, ``nr`` columns a group."""

    step: Step
    decoder: Decoder | None
    zero: Value | None
    scale: Value | None
    nr: int

    def load(self, pointer: Value) -> Value:
        """One vector of words of codes, or of single codes."""
        step = self.step
        return step.b.load(pointer, vector_type(step.lanes, step.memory(step.nest.right)))

    def value(self, loaded: Value, code: int, zero: Value | None) -> Value:
        """Number ``code`` of what ``load`` gave, less its zero point, not scaled."""
        step = self.step
        value = step.convert(step.nest.right, loaded) if self.decoder is None else self.decoder.value(loaded, code)
        return value if zero is None else step.b.op("arith.subf", value, zero)

    def pairs(self, loaded: Value, number: int) -> Value:
        """Pair ``number`` of what ``load`` gave, in bf16."""
        assert self.decoder is not None, "bytes are not taken by pairs in registers"
        return self.decoder.pairs(loaded, number)

    def zeros(self, group: Value, vectors: int) -> list[Value | None]:
        """The zero points of a group, by column vector."""
        return self._grains(self.step.nest.right.zero, self.zero, group, vectors)

    def zero_integers(self, group: Value, vectors: int) -> list[Value | None]:
        """Zero points that are held as bytes, in i32."""
        grain = self.step.nest.right.zero
        if grain is None:
            return [None] * vectors
        assert len(grain.chain) == 1, "bytes become floats in one step"
        widen = {"arith.sitofp": "arith.extsi", "arith.uitofp": "arith.extui"}[
            self.step.nest.spec.body[grain.chain[0]].op
        ]
        b = self.step.b
        return [b.cast(widen, v, "i32") for v in self._loaded(grain, self.zero, group, vectors)]

    def scales(self, group: Value, vectors: int) -> list[Value | None]:
        return self._grains(self.step.nest.right.scale, self.scale, group, vectors)

    def _grains(self, grain: Grain | None, base: Value | None, group: Value, vectors: int) -> list[Value | None]:
        if grain is None:
            return [None] * vectors
        step, found = self.step, list[Value | None]()
        for value in self._loaded(grain, base, group, vectors):
            held = step.nest.spec.operands[grain.operand].dtype
            for i in grain.chain:
                instr = step.nest.spec.body[i]
                value, held = step.ops.emit(instr, [value], [held]), instr.dtype
            found.append(value)
        return found

    def _loaded(self, grain: Grain, base: Value | None, group: Value, vectors: int) -> list[Value]:
        """A group's grains as they are held, by column vector."""
        assert base is not None, "given where there is such a grain"
        b, lanes = self.step.b, self.step.lanes
        memory = memory_type(self.step.nest.spec.operands[grain.operand].dtype)
        line = b.element_pointer(base, b.mul(group, self.nr), memory)
        return [
            b.load(b.element_pointer(line, b.index(j * lanes), memory), vector_type(lanes, memory))
            for j in range(vectors)
        ]


@dataclass(frozen=True)
class CodesTile(Tile):
    """A register tile that makes floats of codes step by step. ``zeros``: of the group at hand.

    ``pairs``: products are summed by pairs of bf16. Then zero points are taken off the sums, by those of the rows' values, which are
    further accumulators behind the others.
    """

    codes: Codes | None = None
    zeros: tuple[Value | None, ...] = ()
    pairs: bool = False

    def grouped(self, groups: Value | None, left: list[Value], right: Value) -> list[Value]:
        """Sums over K, flat; K is ``groups`` times all its inner dimensions, or all of its dimensions make one group."""
        b = self.b
        if groups is None:
            return self._group(b.index(0), 0, left, right, None)
        with b.loop(b.index(0), groups, carried=self._zeros()) as loop:
            loop.yield_(self._group(loop.index, 1, *self._advance(0, left, right, loop.index), loop.carried))
        return loop.results

    def _group(
        self, group: Value, depth: int, left: list[Value], right: Value, total: Accumulators | None
    ) -> Accumulators:
        """``total`` plus the scaled sum of one group."""
        b, codes = self.b, self._codes
        part = replace(self, zeros=tuple(codes.zeros(group, self.vectors)))
        sums = part._reduce(depth, left, right, part._zeros())
        count, scales = self.rows * self.vectors, codes.scales(group, self.vectors) * self.rows
        if sums[count:]:
            minus = [None if z is None else b.emit(f"arith.negf {z.name} : {z.type}", z.type) for z in part.zeros]
            sums = [
                x if (z := minus[n % self.vectors]) is None else b.op("math.fma", sums[count + n // self.vectors], z, x)
                for n, x in enumerate(sums[:count])
            ]
        if total is None:
            return [x if s is None else b.op("arith.mulf", x, s) for x, s in zip(sums, scales, strict=True)]
        return [
            b.op("arith.addf", t, x) if s is None else b.op("math.fma", x, s, t)
            for t, x, s in zip(total, sums, scales, strict=True)
        ]

    def chunk(self, group: Value | None, code: Value, length: int, left: list[Value], right: Value) -> Accumulators:
        """Sums, not scaled, over ``length`` codes of a group from number ``code`` on, the first of a word; ``group``: None where
        there is but one.
        """
        zeros = tuple(self._codes.zeros(self.b.index(0) if group is None else group, self.vectors))
        if group is not None:
            left, right = self._advance(0, left, right, group)
        left, right = self._advance(len(self.sizes) - 1, left, right, code)
        part = replace(
            self,
            sizes=[const(length)],
            left_strides=self.left_strides[-1:],
            right_strides=self.right_strides[-1:],
            zeros=zeros,
            pairs=False,
            ahead=None,
        )
        return part._reduce(0, left, right, part._zeros())

    @property
    def _codes(self) -> Codes:
        assert self.codes is not None, "given by the kernel"
        return self.codes

    def _step(
        self,
        left: list[Value],
        right: Value,
        total: Accumulators,
        outside: Collection[int] = (),
        points: int | None = None,
    ) -> Accumulators:
        if self.pairs:
            return self._step_of_pairs(left, right, total, points or self.step.group)
        b, step, codes = self.b, self.step, self._codes
        points = points or step.group
        loaded = [
            codes.load(self._at(right, b.mul(self.vector_step, j), self._right_element)) for j in range(self.vectors)
        ]
        across = self._value(self.left_strides[-1])
        rows = [step.left(self._row(left, i), points, across, None) for i in range(self.rows)]
        result = list(total)
        for u in range(points):
            columns = [codes.value(word, u, self.zeros[j]) for j, word in enumerate(loaded)]
            for i, row in enumerate(rows):
                for j, column in enumerate(columns):
                    at = i * self.vectors + j
                    result[at] = b.op("math.fma", row[u], column, result[at])
        return result

    def _step_of_pairs(self, left: list[Value], right: Value, total: Accumulators, points: int) -> Accumulators:
        b, step, codes = self.b, replace(self.step, group=2, dot=True), self._codes
        loaded = [
            codes.load(self._at(right, b.mul(self.vector_step, j), self._right_element)) for j in range(self.vectors)
        ]
        across = self._value(self.left_strides[-1])
        ones = _ones(b)
        result = list(total)
        for u in range(-(-points // 2)):
            columns = [codes.pairs(word, u) for word in loaded]
            for i in range(self.rows):
                pointer = self._at(self._row(left, i), b.mul(across, 2 * u), self._left_element)
                (row,) = step.left(pointer, min(2, points - 2 * u), across, None)
                for j, column in enumerate(columns):
                    at = i * self.vectors + j
                    result[at] = dot_pairs(b, result[at], row, column)
                if len(result) > self.rows * self.vectors:
                    at = self.rows * self.vectors + i
                    result[at] = dot_pairs(b, result[at], row, ones)
        return result

    def _zeros(self) -> Accumulators:
        further = self.rows if self.pairs and any(z is not None for z in self.zeros) else 0
        return [self.step.zero()] * (self.rows * self.vectors + further)


def _ones(b: Builder) -> Value:
    """32 times 1, in bf16."""
    bits = b.constant(bits_of(1, "bf16"), "i16", PAIRED)
    return b.emit(f"vector.bitcast {bits.name} : {bits.type} to vector<{PAIRED}xbf16>", f"vector<{PAIRED}xbf16>")
