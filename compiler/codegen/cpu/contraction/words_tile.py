"""The products of rows held as bytes (`fixed_point`, `byte_rows`) and words of packed codes: ``vpdpbusd``, summed in i32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from effc.compiler.codegen.cpu.byte_dots import dot_bytes
from effc.compiler.codegen.cpu.contraction.ahead import DISTANCE, LINE
from effc.compiler.codegen.cpu.contraction.byte_factors import sums_bytes
from effc.compiler.codegen.cpu.contraction.codes_tile import Codes
from effc.compiler.codegen.cpu.contraction.roles import Nest
from effc.compiler.codegen.cpu.contraction.sides import Grain
from effc.compiler.codegen.cpu.contraction.tile import unroll_of
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.codegen.cpu.text import Builder, Value, split_type
from effc.compiler.ir.formats import Format

#: Values of a row that a vector holds.
LANES = 16
#: Words of codes, for each vector of columns, in the body of a loop.
UNROLL = 2


def fields(format_: Format) -> list[list[int]]:
    """The numbers of the codes that the four bytes of a word hold, by field from the lowest bits on."""
    numbers = {format_.place(n): n for n in range(format_.codes_a_word)}
    return [[numbers[8 * byte + bit] for byte in range(4)] for bit in range(0, 8, format_.stored_bits)]


def sums_of_words(nest: Nest, target: Target) -> tuple[int, int] | None:
    """``(groups, codes of a group)`` of a contraction whose rows, as bytes, can meet the right factor's codes as they are packed."""
    format_, sizes, zero = nest.right.format, [nest.size(k).constant for k in nest.reduction], nest.right.zero
    if not sums_bytes(target) or format_ is None or format_.codebook or format_.codes_a_word > LANES or nest.outer:
        return None
    if None in sizes or len(sizes) != (1 if nest.groups is None else 2) or not all(sizes):
        return None
    if zero is not None and not is_byte(nest, zero):
        return None
    if nest.stride(nest.left.load, nest.reduction[-1]).constant != 1:
        return None
    *groups, inner = (size or 0 for size in sizes)
    return groups[0] if groups else 1, inner


def is_byte(nest: Nest, grain: Grain) -> bool:
    """Whether a zero point or scale is held as a byte, which one conversion makes a float."""
    return nest.spec.operands[grain.operand].dtype == "i8" and len(grain.chain) == 1


class Rows(Protocol):
    """Rows as bytes in memory: ``each`` words for every field of a word of codes, the bytes of a word as the codes of the field."""

    each: int
    target: Target
    format: Format

    def bytes_of(self, row: int, code: Value) -> Value:
        """Where those that meet the word stand whose first code, fillers counted, has number ``code``."""


@dataclass(frozen=True)
class WordsTile:
    """``rows`` x ``vectors`` x ``held.each`` sums. ``right``: the panel's first word; ``nr``: its columns."""

    b: Builder
    held: Rows
    codes: Codes
    rows: int
    vectors: int
    right: Value
    nr: int

    @property
    def lanes(self) -> int:
        return self.codes.step.lanes

    def at(self, row: int, vector: int, part: int = 0) -> int:
        """Where a sum stands among all."""
        return (row * self.vectors + vector) * self.held.each + part

    def zeros(self, group: Value) -> list[Value]:
        """What the codes, unsigned, have too much, by column vector: what makes signed ones unsigned, and their zero points."""
        b, format_ = self.b, self.held.format
        offset = b.constant(1 << (format_.bits - 1) if format_.signed else 0, "i32", self.lanes)
        found = self.codes.zero_integers(group, self.vectors)
        return [offset if zero is None else b.op("arith.addi", zero, offset) for zero in found]

    def scaled(self, total: list[Value], sums: list[Value], group: Value) -> list[Value]:
        """``total`` and a group's ``sums``, ``[row][vector]`` in f32, times its scales."""
        b = self.b
        return [
            b.op("arith.addf", t, x) if s is None else b.op("math.fma", x, s, t)
            for t, x, s in zip(total, sums, self.codes.scales(group, self.vectors) * self.rows, strict=True)
        ]

    def products(self, place: Value, count: int, total: list[Value]) -> list[Value]:
        """``total`` and the products of ``count`` words of each column, from code number ``place``, fillers counted, on."""
        b = self.b
        right = b.element_pointer(self.right, b.mul(b.div(place, self.held.format.codes_a_word), self.nr), "i32")
        left = [self.held.bytes_of(row, place) for row in range(self.rows)]
        unroll = unroll_of(count, UNROLL)
        whole = count // unroll * unroll
        with b.loop(b.index(0), b.index(whole), unroll, total) as loop:
            loop.yield_(self._words(left, right, loop.index, unroll, loop.carried))
        return self._words(left, right, b.index(whole), count - whole, loop.results)

    def _words(self, left: list[Value], right: Value, first: Value, count: int, total: list[Value]) -> list[Value]:
        b, result, each = self.b, list(total), self.held.each
        parts = len(fields(self.held.format))
        line = b.element_pointer(right, b.mul(first, self.nr), "i32")
        for at in range(0, count * self.nr * 4, LINE):
            b.prefetch(b.element_pointer(line, b.index(at + DISTANCE), "i8"))
        for word in range(count):
            start = b.mul(b.add(first, word), parts * each * 4)
            loaded = [
                self.codes.load(b.element_pointer(line, b.index(word * self.nr + v * self.lanes), "i32"))
                for v in range(self.vectors)
            ]
            for field in range(parts):
                unsigned = [self._unsigned(w, field) for w in loaded]
                for row, pointer in enumerate(left):
                    for part in range(each):
                        place = b.add(start, (field * each + part) * 4)
                        signed = b.broadcast(b.load(b.element_pointer(pointer, place, "i8"), "i32"), self.lanes)
                        for v, codes in enumerate(unsigned):
                            at = self.at(row, v, part)
                            result[at] = dot_bytes(b, self.held.target, result[at], codes, signed)
        return result

    def _unsigned(self, word: Value, field: int) -> Value:
        """The codes of a field, one a byte; signed ones with their offset."""
        b, format_ = self.b, self.held.format
        lanes = split_type(word.type)[0]

        def bytes_of(value: int) -> Value:
            return b.constant(value * 0x01010101, "i32", lanes)

        if field:
            word = b.op("arith.shrui", word, b.constant(field * format_.stored_bits, "i32", lanes))
        if format_.bits < 8:
            word = b.op("arith.andi", word, bytes_of((1 << format_.bits) - 1))
        return b.op("arith.xori", word, bytes_of(1 << (format_.bits - 1))) if format_.signed else word
