"""The register tile of rows in fixed point (`fixed_point`) and a packed factor of codes: sums of bytes in i32, floats a chunk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from effc.compiler.codegen.cpu.byte_dots import dot_words
from effc.compiler.codegen.cpu.contraction.fixed_point import DIGITS, FixedRows
from effc.compiler.codegen.cpu.contraction.words_tile import WordsTile
from effc.compiler.codegen.cpu.text import Value

#: Emits the sums (f32, ``[row][vector]``) over the codes of one group from a number on, so many of them, as they are without digits.
Floats = Callable[[Value, Value, int], list[Value]]


@dataclass(frozen=True)
class DigitsTile(WordsTile):
    """``rows`` x ``vectors`` sums in f32. ``floats``: for chunks that are marked."""

    held: FixedRows
    floats: Floats

    def sums(self) -> list[Value]:
        """Sums over K, flat, scaled."""
        b, chunks = self.b, self.held.chunks
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

    def _chunk(self, group: Value, code: Value, chunk: Value, length: int, total: list[Value]) -> list[Value]:
        """``total`` and the products of the ``length`` codes from number ``code`` of a group on."""
        b = self.b
        heads = [self.held.head(row, chunk) for row in range(self.rows)]
        marks = [self.held.mark(head) for head in heads]
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
        return self.scaled(total, sums, group)

    def _digits(self, heads: list[Value], group: Value, code: Value, length: int) -> list[Value]:
        """The sums of a chunk as floats."""
        b, chunks = self.b, self.held.chunks
        place = b.add(b.mul(group, chunks.filled), code)
        total = self.products(place, -(-length // chunks.word), self._starts(heads, group))
        return [
            self._float(heads[row], [total[self.at(row, v, d)] for d in range(DIGITS)])
            for row in range(self.rows)
            for v in range(self.vectors)
        ]

    def _starts(self, heads: list[Value], group: Value) -> list[Value]:
        """Of each sum: what ``zeros`` add to it, with the opposite sign."""
        b, zeros, found = self.b, self.zeros(group), []
        for head in heads:
            sums = [b.broadcast(self.held.minus_sum(head, d), self.lanes) for d in range(DIGITS)]
            found += [dot_words(b, zero, s) for zero in zeros for s in sums]
        return found

    def _float(self, head: Value, sums: list[Value]) -> Value:
        """Of the sums of the digits, the highest last."""
        b = self.b
        base = b.constant(256, "f32", self.lanes)
        total, *lower = (b.cast("arith.sitofp", s, "f32") for s in reversed(sums))
        for value in lower:
            total = b.op("math.fma", total, base, value)
        return b.op("arith.mulf", total, b.broadcast(self.held.unit(head), self.lanes))
