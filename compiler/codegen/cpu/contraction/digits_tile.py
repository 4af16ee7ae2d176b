"""The register tile of rows in fixed point (`fixed_point`) and a packed factor of codes: sums of bytes in i32, floats a chunk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from effc.compiler.codegen.cpu.byte_dots import dot_bytes, dot_words
from effc.compiler.codegen.cpu.contraction.ahead import DISTANCE, LINE
from effc.compiler.codegen.cpu.contraction.codes_tile import Codes
from effc.compiler.codegen.cpu.contraction.fixed_point import DIGITS, FixedRows, fields
from effc.compiler.codegen.cpu.contraction.tile import unroll_of
from effc.compiler.codegen.cpu.text import Builder, Value, split_type

#: Words of codes, for each vector of columns, in the body of a loop.
UNROLL = 2

#: Emits the sums (f32, ``[row][vector]``) over the codes of one group from a number on, so many of them, as they are without digits.
Floats = Callable[[Value, Value, int], list[Value]]


@dataclass(frozen=True)
class DigitsTile:
    """``rows`` x ``vectors`` sums. ``right``: the panel's first word; ``nr``: its columns; ``floats``: for chunks that are marked."""

    b: Builder
    fixed: FixedRows
    codes: Codes
    rows: int
    vectors: int
    right: Value
    nr: int
    floats: Floats

    def sums(self) -> list[Value]:
        """Sums over K, flat, scaled."""
        b, chunks = self.b, self.fixed.chunks
        zero = b.constant(0, "f32", self.lanes)
        with b.loop(b.index(0), b.index(chunks.groups), carried=[zero] * (self.rows * self.vectors)) as group:
            total, before, number = group.carried, 0, 0
            for count, length in chunks.lengths:
                with b.loop(b.index(0), b.index(count), carried=total) as loop:
                    code = b.add(b.mul(loop.index, chunks.size), before)
                    chunk = b.add(b.add(b.mul(group.index, chunks.each), number), loop.index)
                    loop.yield_(self._chunk(group.index, code, chunk, length, loop.carried))
                total, before, number = loop.results, before + count * length, number + count
            group.yield_(total)
        return group.results

    @property
    def lanes(self) -> int:
        return self.codes.step.lanes

    def _chunk(self, group: Value, code: Value, chunk: Value, length: int, total: list[Value]) -> list[Value]:
        """``total`` and the products of the ``length`` codes from number ``code`` of a group on."""
        b = self.b
        heads = [self.fixed.head(row, chunk) for row in range(self.rows)]
        marks = [self.fixed.mark(head) for head in heads]
        marked = marks[0]
        for mark in marks[1:]:
            marked = b.op("arith.ori", marked, mark)
        good = b.compare("arith.cmpi", "eq", marked, b.constant(0, "i32"))
        sums = b.choose(
            good,
            [v.type for v in total],
            lambda: self._digits(heads, group, code, length),
            lambda: self.floats(group, code, length),
        )
        scales = self.codes.scales(group, self.vectors) * self.rows
        return [
            b.op("arith.addf", t, x) if s is None else b.op("math.fma", x, s, t)
            for t, x, s in zip(total, sums, scales, strict=True)
        ]

    def _digits(self, heads: list[Value], group: Value, code: Value, length: int) -> list[Value]:
        """The sums of a chunk as floats."""
        b, word = self.b, self.fixed.chunks.word
        place = b.add(b.mul(group, self.fixed.chunks.filled), code)
        right = b.element_pointer(self.right, b.mul(b.div(place, word), self.nr), "i32")
        left = [self.fixed.digits(row, place) for row in range(self.rows)]
        words = -(-length // word)
        unroll, total = unroll_of(words, UNROLL), self._starts(heads, group)
        whole = words // unroll * unroll
        with b.loop(b.index(0), b.index(whole), unroll, total) as loop:
            loop.yield_(self._words(left, right, loop.index, unroll, loop.carried))
        total = self._words(left, right, b.index(whole), words - whole, loop.results)
        return [
            self._float(heads[row], [total[self._at(row, v, d)] for d in range(DIGITS)])
            for row in range(self.rows)
            for v in range(self.vectors)
        ]

    def _at(self, row: int, vector: int, digit: int) -> int:
        return (row * self.vectors + vector) * DIGITS + digit

    def _starts(self, heads: list[Value], group: Value) -> list[Value]:
        """Of each sum: what the codes' offset, which makes them unsigned, and their zero point add to it, with the opposite sign."""
        b, codes, format_ = self.b, self.codes, self.fixed.format
        offset = b.constant(1 << (format_.bits - 1) if format_.signed else 0, "i32", self.lanes)
        zeros = [
            offset if z is None else b.op("arith.addi", z, offset) for z in codes.zero_integers(group, self.vectors)
        ]
        found = []
        for head in heads:
            sums = [b.broadcast(self.fixed.minus_sum(head, d), self.lanes) for d in range(DIGITS)]
            found += [dot_words(b, zero, s) for zero in zeros for s in sums]
        return found

    def _words(self, left: list[Value], right: Value, first: Value, count: int, total: list[Value]) -> list[Value]:
        """``total`` and the products of ``count`` words of each column."""
        b, result, parts = self.b, list(total), fields(self.fixed.format)
        line = b.element_pointer(right, b.mul(first, self.nr), "i32")
        for at in range(0, count * self.nr * 4, LINE):
            b.prefetch(b.element_pointer(line, b.index(at + DISTANCE), "i8"))
        for word in range(count):
            start = b.mul(b.add(first, word), self.fixed.chunks.word * DIGITS)
            loaded = [
                self.codes.load(b.element_pointer(line, b.index(word * self.nr + v * self.lanes), "i32"))
                for v in range(self.vectors)
            ]
            for field in range(len(parts)):
                unsigned = [self._unsigned(w, field) for w in loaded]
                for row, pointer in enumerate(left):
                    for d in range(DIGITS):
                        place = b.add(start, (field * DIGITS + d) * 4)
                        digit = b.broadcast(b.load(b.element_pointer(pointer, place, "i8"), "i32"), self.lanes)
                        for v, codes in enumerate(unsigned):
                            at = self._at(row, v, d)
                            result[at] = dot_bytes(b, self.fixed.target, result[at], codes, digit)
        return result

    def _unsigned(self, word: Value, field: int) -> Value:
        """The codes of a field, one a byte; signed ones with their offset."""
        b, format_ = self.b, self.fixed.format
        lanes = split_type(word.type)[0]

        def bytes_of(value: int) -> Value:
            return b.constant(value * 0x01010101, "i32", lanes)

        if field:
            word = b.op("arith.shrui", word, b.constant(field * format_.stored_bits, "i32", lanes))
        if format_.bits < 8:
            word = b.op("arith.andi", word, bytes_of((1 << format_.bits) - 1))
        return b.op("arith.xori", word, bytes_of(1 << (format_.bits - 1))) if format_.signed else word

    def _float(self, head: Value, sums: list[Value]) -> Value:
        """Of the sums of the digits, the highest last."""
        b = self.b
        base = b.constant(256, "f32", self.lanes)
        total, *lower = (b.cast("arith.sitofp", s, "f32") for s in reversed(sums))
        for value in lower:
            total = b.op("math.fma", total, base, value)
        return b.op("arith.mulf", total, b.broadcast(self.fixed.unit(head), self.lanes))
