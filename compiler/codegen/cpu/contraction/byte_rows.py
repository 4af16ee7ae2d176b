"""Rows of signed bytes that meet packed codes as they are: activations in 8 bits, weights in 4.

The products of a group are summed in i32, exactly; a group's sum becomes a float, which the group's scale multiplies. As floats these are
exact too while they are below 2**24, as all but extreme ones are where scales are bytes (two grains, `compress/dual.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from effc.compiler.codegen.cpu.byte_dots import dot_bytes
from effc.compiler.codegen.cpu.contraction.factors import Step
from effc.compiler.codegen.cpu.contraction.roles import Nest
from effc.compiler.codegen.cpu.contraction.words_tile import LANES, WordsTile, fields, sums_of_words
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.codegen.cpu.text import Value

_WORD = 4
#: The greatest magnitudes of a row's element and of a code less its zero point, and the greatest sum of i32.
_ELEMENT, _CODE, _SUM = 128, 255, 2**31 - 1


@dataclass(frozen=True)
class Groups:
    """A sum over ``count`` groups of ``inner`` codes, ``word`` of them in 32 bits."""

    count: int
    inner: int
    word: int

    @property
    def filled(self) -> int:
        """Codes of a group with those that fill its last word."""
        return -(-self.inner // self.word) * self.word

    @property
    def row_bytes(self) -> int:
        return self.count * self.filled

    def sums(self, rows: int) -> int:
        """Bytes before the sums of groups; the last vector may end behind the last element."""
        return rows * self.row_bytes + LANES

    def bytes(self, rows: int) -> int:
        """Of all that is kept of ``rows``."""
        return self.sums(rows) + rows * self.count * _WORD


def groups_of(nest: Nest, target: Target) -> Groups | None:
    """The groups of a contraction with codes; None where its rows are not bytes, or its sums might not fit i32."""
    sums, format_, body, left = sums_of_words(nest, target), nest.right.format, nest.spec.body, nest.left
    if sums is None or format_ is None or nest.spec.operands[left.operand].dtype != "i8":
        return None
    if [body[i].op for i in left.chain] != ["arith.sitofp"] or sums[1] * _ELEMENT * _CODE > _SUM:
        return None
    return Groups(*sums, format_.codes_a_word)


class ByteRows:
    """Emits up to ``rows`` rows into ``memory``: ``[row][word][field]`` words of four elements each, in which these lie as the codes in a
    word of the factor; behind them the negative sum of each group, an i32.
    """

    each = 1

    def __init__(self, step: Step, target: Target, groups: Groups, memory: Value, rows: int) -> None:
        self.b, self.step, self.target, self.groups, self.memory, self.most = step.b, step, target, groups, memory, rows
        format_ = step.nest.right.format
        assert format_ is not None, "asked of codes only"
        self.format = format_
        word = [n for numbers in fields(format_) for n in numbers]
        self._order = [first + n for first in range(0, LANES, len(word)) for n in word]

    def bytes_of(self, row: int | Value, code: Value) -> Value:
        b = self.b
        line = b.mul(b.index(row) if isinstance(row, int) else row, self.groups.row_bytes)
        return b.element_pointer(self.memory, b.add(line, code), "i8")

    def minus_sum(self, row: int | Value, group: Value) -> Value:
        """Where the negative sum of a group of a row stands."""
        b = self.b
        line = b.mul(b.index(row) if isinstance(row, int) else row, self.groups.count)
        first = b.element_pointer(self.memory, b.index(self.groups.sums(self.most)), "i8")
        return b.element_pointer(first, b.add(line, group), "i32")

    def write(self, first: Value, stride: Value, rows: Value, group_stride: Value) -> None:
        """``rows`` rows, ``stride`` elements apart from ``first`` on, whose groups are ``group_stride`` apart."""
        b, groups = self.b, self.groups
        whole, rest = divmod(groups.inner, LANES)
        with b.loop(b.index(0), rows) as row, b.loop(b.index(0), b.index(groups.count)) as group:
            offset = b.add(b.mul(row.index, stride), b.mul(group.index, group_stride))
            source = b.element_pointer(first, offset, "i8")
            place = self.bytes_of(row.index, b.mul(group.index, groups.filled))
            with b.loop(b.index(0), b.index(whole), carried=[b.constant(0, "i32", LANES // _WORD)]) as loop:
                at = b.mul(loop.index, LANES)
                loop.yield_([self._write(source, place, at, LANES, loop.carried[0])])
            total = loop.results[0]
            if rest:
                total = self._write(source, place, b.index(whole * LANES), rest, total)
            summed = b.emit(f"vector.reduction <add>, {total.name} : {total.type} into i32", "i32")
            b.store(b.op("arith.subi", b.constant(0, "i32"), summed), self.minus_sum(row.index, group.index))

    def _write(self, source: Value, place: Value, at: Value, count: int, total: Value) -> Value:
        """``total``, by lanes of four bytes, and the ``count`` elements from number ``at`` on, which are written."""
        b, words = self.b, LANES // _WORD
        mask = b.first_lanes(LANES, b.index(count)) if count < LANES else None
        loaded = self.step.vector(b.element_pointer(source, at, "i8"), "i8", mask)
        parts = b.shuffle(loaded, self._order)
        b.store(parts, b.element_pointer(place, at, "i8"))
        as_words = b.emit(f"vector.bitcast {parts.name} : {parts.type} to vector<{words}xi32>", f"vector<{words}xi32>")
        return dot_bytes(b, self.target, total, b.constant(0x01010101, "i32", words), as_words)


@dataclass(frozen=True)
class BytesTile(WordsTile):
    """``rows`` x ``vectors`` sums in f32."""

    held: ByteRows

    def sums(self) -> list[Value]:
        """Sums over K, flat, scaled."""
        b = self.b
        zero = b.constant(0, "f32", self.lanes)
        with b.loop(b.index(0), b.index(self.held.groups.count), carried=[zero] * (self.rows * self.vectors)) as group:
            sums = [b.cast("arith.sitofp", x, "f32") for x in self._group(group.index)]
            group.yield_(self.scaled(group.carried, sums, group.index))
        return group.results

    def _group(self, group: Value) -> list[Value]:
        """The sums of a group, not scaled."""
        b, groups, zeros = self.b, self.held.groups, self.zeros(group)
        sums = [b.broadcast(b.load(self.held.minus_sum(row, group), "i32"), self.lanes) for row in range(self.rows)]
        starts = [b.op("arith.muli", zero, s) for s in sums for zero in zeros]
        return self.products(b.mul(group, groups.filled), groups.filled // groups.word, starts)
