"""Rows in fixed point: integers whose bytes ``vpdpbusd`` multiplies with codes, for products with weights that alone are quantized.

Making a float of each code takes two to three instructions for 16 of them, and their multiply-add another: a core with two such units
then reads 20 to 30 GB/s of bytes from its caches, no faster than memory gives them, and the two do not overlap fully. So the few rows
are sliced instead of the many codes (the scheme of Ozaki et al., "Error-free transformations of matrix multiplication by using fast
routines of matrix multiplication and its applications", Numerical Algorithms 59, 2012, with integers as Ootomo, Ozaki and Yokota,
"DGEMM on integer matrix multiplication unit", 2024, have it). A chunk of a row with largest magnitude below ``2**e`` becomes integers
``X = round(x * 2**(30 - e))``, and ``X`` four signed digits to the base 256. Each digit is multiplied with the codes and summed in i32,
exactly; the four sums make one float.

**Error.** Each ``x`` moves by at most ``2**(e - 31)``, so a sum by ``2**(e - 31)`` times the sum of the codes' magnitudes. Elements of
at least ``2**(e - 7)`` are exact, and those of at least ``2**(e - 9)`` move by no more than ``2**-22`` of themselves. Where more than half
of a chunk are smaller than that and not zero, or one is not finite, the chunk is marked, and its codes become floats.
"""

from __future__ import annotations

from dataclasses import dataclass

from effc.compiler.codegen.cpu.access import memory_type
from effc.compiler.codegen.cpu.byte_dots import dot_bytes
from effc.compiler.codegen.cpu.contraction.factors import Step
from effc.compiler.codegen.cpu.contraction.roles import Nest
from effc.compiler.codegen.cpu.contraction.words_tile import LANES, fields, sums_of_words
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.codegen.cpu.text import Builder, Value

#: Digits of an integer.
DIGITS = 4
#: Bytes of a vector, and of what is known of a chunk: the digits' sums, its unit in the last place, its mark.
VECTOR, HEAD = 64, 32
_UNIT, _MARK = 4, 5
#: Codes of a chunk at most, and where that leaves a short one: more amortize the four sums' way to floats better, fewer share one scale.
#: Sums of digits of up to 255 fit 16 bits.
_LONGEST, _USUAL = 160, 128
#: The least exponent, as stored, of a chunk's largest magnitude that it is scaled by: the factor of a lower one would be no float32.
_LEAST_EXPONENT = 40
#: Binary digits by which an element may be smaller than the chunk's largest magnitude and still count as well represented.
_RANGE = 9
#: A bias of each digit that makes them unsigned.
_BIAS = 0x80808080


@dataclass(frozen=True)
class Chunks:
    """A sum over ``groups`` of ``inner`` codes, ``word`` of them in 32 bits, cut into chunks of ``size`` and a shorter one a group."""

    groups: int
    inner: int
    word: int
    size: int

    @staticmethod
    def of(groups: int, inner: int, word: int) -> Chunks:
        even = (size for size in range(_LONGEST, LANES, -LANES) if inner % size == 0)
        size = -(-inner // LANES) * LANES if inner <= _LONGEST else next(even, _USUAL)
        return Chunks(groups, inner, word, size)

    @property
    def lengths(self) -> list[tuple[int, int]]:
        """``(how many, codes)`` of a group's chunks, in order."""
        whole, rest = divmod(self.inner, self.size)
        return [(n, length) for n, length in ((whole, self.size), (1, rest)) if n and length]

    @property
    def each(self) -> int:
        """Chunks of a group."""
        return sum(n for n, _ in self.lengths)

    @property
    def filled(self) -> int:
        """Codes of a group with those that fill its last word."""
        return -(-self.inner // self.word) * self.word

    @property
    def row_bytes(self) -> int:
        """Of the digits of a row, which end a vector later."""
        return self.groups * self.filled * DIGITS

    def bytes(self, rows: int) -> int:
        """Of all that is kept of ``rows``."""
        return self.heads(rows) + rows * self.groups * self.each * HEAD

    def heads(self, rows: int) -> int:
        """Bytes from the first digit to the first chunk's head."""
        return rows * self.row_bytes + VECTOR


def chunks_of(nest: Nest, target: Target) -> Chunks | None:
    """How the sum of a contraction with codes is cut; None where its rows are not taken in fixed point."""
    sums, format_ = sums_of_words(nest, target), nest.right.format
    if sums is None or format_ is None or nest.spec.operands[nest.left.operand].dtype == "i1":
        return None
    return Chunks.of(*sums, format_.codes_a_word)


class FixedRows:
    """Emits the digits of up to ``rows`` rows into ``memory``: ``[row][word][field][digit]`` words of four codes each, in which the codes
    lie as in a word of the factor; behind them a head a chunk.
    """

    each = DIGITS

    def __init__(self, step: Step, target: Target, chunks: Chunks, memory: Value, rows: int) -> None:
        self.b, self.step, self.target, self.chunks, self.memory, self.most = step.b, step, target, chunks, memory, rows
        format_ = step.nest.right.format
        assert format_ is not None, "asked of codes only"
        self.format = format_
        word = [n for numbers in fields(format_) for n in numbers]
        #: Of the bytes of 16 integers, in the order in which they are stored.
        self._order = [
            (first + word[4 * field + byte]) * DIGITS + digit
            for first in range(0, LANES, format_.codes_a_word)
            for field in range(format_.codes_a_word // 4)
            for digit in range(DIGITS)
            for byte in range(4)
        ]

    # -- where things lie -------------------------------------------------------------------------------------------
    def bytes_of(self, row: int | Value, code: Value) -> Value:
        """The digits from number ``code`` of all codes of a row on, fillers counted; the first of a word."""
        b = self.b
        line = b.mul(b.index(row) if isinstance(row, int) else row, self.chunks.row_bytes)
        return b.element_pointer(self.memory, b.add(line, b.mul(code, DIGITS)), "i8")

    def head(self, row: int | Value, chunk: Value) -> Value:
        b, chunks = self.b, self.chunks
        line = b.mul(b.index(row) if isinstance(row, int) else row, chunks.groups * chunks.each)
        place = b.add(b.mul(b.add(line, chunk), HEAD), chunks.heads(self.most))
        return b.element_pointer(self.memory, place, "i8")

    def minus_sum(self, head: Value, digit: int) -> Value:
        """The negative sum of a digit over a chunk, an i32 that fits 16 bits."""
        return self.b.load(self._word(head, digit), "i32")

    def unit(self, head: Value) -> Value:
        """What an integer of a chunk is multiplied with to be the float (f32)."""
        return self.b.load(self._word(head, _UNIT), "f32")

    def mark(self, head: Value) -> Value:
        """Not 0 where a chunk is not well represented (i32)."""
        return self.b.load(self._word(head, _MARK), "i32")

    def _word(self, head: Value, number: int) -> Value:
        return self.b.element_pointer(head, self.b.index(number), "i32")

    # -- writing ----------------------------------------------------------------------------------------------------
    def write(self, first: Value, stride: Value, rows: Value, group_stride: Value) -> None:
        """The digits of ``rows`` rows, ``stride`` elements apart from ``first`` on, whose groups are ``group_stride`` apart."""
        b, chunks, element = self.b, self.chunks, memory_type(self._dtype)
        with b.loop(b.index(0), rows) as row, b.loop(b.index(0), b.index(chunks.groups)) as group:
            offset = b.add(b.mul(row.index, stride), b.mul(group.index, group_stride))
            start = b.element_pointer(first, offset, element)
            code, before = b.mul(group.index, chunks.filled), b.index(0)
            number = b.mul(group.index, chunks.each)
            for count, length in chunks.lengths:
                with b.loop(b.index(0), b.index(count)) as loop:
                    past = b.add(before, b.mul(loop.index, chunks.size))
                    self._write_chunk(
                        b.element_pointer(start, past, element),
                        length,
                        self.bytes_of(row.index, b.add(code, past)),
                        self.head(row.index, b.add(number, b.add(loop.index, b.div(before, chunks.size)))),
                    )
                before = b.index(count * length)

    @property
    def _dtype(self) -> str:
        return self.step.nest.spec.operands[self.step.nest.left.operand].dtype

    def _write_chunk(self, start: Value, length: int, digits: Value, head: Value) -> None:
        b, i32 = self.b, "i32"
        values = self._values(start, length)
        sizes = [
            b.op("arith.andi", b.cast("arith.bitcast", v, i32), b.constant(0x7FFFFFFF, i32, LANES)) for v in values
        ]
        exponent = b.op("arith.shrui", _reduce(b, "maxui", _fold(b, "arith.maxsi", sizes)), b.constant(23, i32))
        scaled = b.op("arith.maxsi", exponent, b.constant(_LEAST_EXPONENT, i32))
        # 2**(30 - e) and 2**(e - 30), where the exponent as stored is e + 126.
        factor = self._power(b.op("arith.subi", b.constant(127 + 30 + 126, i32), scaled))
        unit = self._power(b.op("arith.subi", scaled, b.constant(126 + 30 - 127, i32)))
        b.store(unit, self._word(head, _UNIT))
        least = b.op("arith.shli", b.op("arith.subi", scaled, b.constant(_RANGE - 1, i32)), b.constant(23, i32))
        self._mark(head, exponent, [self._is_small(s, least) for s in sizes], length)
        many = b.broadcast(factor, LANES)
        ones = b.constant(0x01010101, i32, LANES)
        total = b.constant(0, i32, LANES)
        for i, value in enumerate(values):
            rounded = b.op("math.roundeven", b.op("arith.mulf", value, many))
            slices = self._slices(b.cast("arith.fptosi", rounded, i32))
            b.store(slices, b.element_pointer(digits, b.index(i * VECTOR), "i8"))
            total = dot_bytes(b, self.target, total, ones, slices)
        for digit in range(DIGITS):
            lanes = b.shuffle(total, range(digit, LANES, DIGITS))
            minus = b.op("arith.subi", b.constant(0, i32), _reduce(b, "add", lanes))
            b.store(minus, self._word(head, digit))

    def _values(self, start: Value, length: int) -> list[Value]:
        """A chunk by vectors of floats, zeros behind its end."""
        b, step, element = self.b, self.step, memory_type(self._dtype)
        found = []
        for at in range(0, length, LANES):
            mask = b.first_lanes(LANES, b.index(length - at)) if length - at < LANES else None
            loaded = step.vector(b.element_pointer(start, b.index(at), element), element, mask)
            found.append(step.convert(step.nest.left, loaded))
        return found

    def _power(self, exponent: Value) -> Value:
        """The float32 of this exponent, as stored, and mantissa 1."""
        b = self.b
        return b.cast("arith.bitcast", b.op("arith.shli", exponent, b.constant(23, "i32")), "f32")

    def _is_small(self, size: Value, least: Value) -> Value:
        """1 in the lanes whose magnitude is not 0 and below ``least``, by their bits."""
        b = self.b
        one, zero = b.constant(1, "i32", LANES), b.constant(0, "i32", LANES)
        below = b.compare("arith.cmpi", "slt", size, b.broadcast(least, LANES))
        some = b.compare("arith.cmpi", "ne", size, zero)
        return b.select(b.op("arith.andi", below, some), one, zero)

    def _mark(self, head: Value, exponent: Value, small: list[Value], length: int) -> None:
        b, i32 = self.b, "i32"
        count = _reduce(b, "add", _fold(b, "arith.addi", small))
        bad = b.compare("arith.cmpi", "sgt", count, b.constant(length // 2, i32))
        infinite = b.compare("arith.cmpi", "eq", exponent, b.constant(255, i32))
        bad = b.op("arith.ori", bad, infinite)
        b.store(b.cast("arith.extui", bad, i32), self._word(head, _MARK))

    def _slices(self, integers: Value) -> Value:
        """The signed digits of 16 integers, as 16 words in the order of ``memory``."""
        b, bias = self.b, self.b.constant(_BIAS, "i32", LANES)
        signed = b.op("arith.xori", b.op("arith.addi", integers, bias), bias)
        parts = b.emit(f"vector.bitcast {signed.name} : {signed.type} to vector<{VECTOR}xi8>", f"vector<{VECTOR}xi8>")
        parts = b.shuffle(parts, self._order)
        return b.emit(f"vector.bitcast {parts.name} : {parts.type} to {signed.type}", signed.type)


def _fold(b: Builder, op: str, values: list[Value]) -> Value:
    total = values[0]
    for value in values[1:]:
        total = b.op(op, total, value)
    return total


def _reduce(b: Builder, kind: str, value: Value) -> Value:
    return b.emit(f"vector.reduction <{kind}>, {value.name} : {value.type} into i32", "i32")
