"""Low-bit codes to floats: the lowest bits of a 32-bit lane look up one of 16 numbers.

With 512-bit vectors ``vpermps`` is that lookup, by integers and codebooks alike: it takes its index from the four lowest bits of each lane
and ignores the others, which hold the codes of further steps of K. So a code costs one shift and one permutation, both for 16 columns.
In bf16 ``vpermw`` looks up two codes a lane.
"""

from __future__ import annotations

from functools import cached_property

from effc.compiler.codegen.cpu.lowp import bits_of
from effc.compiler.codegen.cpu.permute import permuted
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.codegen.cpu.text import Builder, Value, split_type, vector_type
from effc.compiler.ir.formats import Format

#: Numbers of a table, and lanes of its vector.
ENTRIES = 16


class Decoder:
    """Emits the conversions of one format. Made at the top of a function: its table may lie on the stack."""

    def __init__(self, b: Builder, target: Target, format_: Format) -> None:
        self.b, self.format = b, format_
        self._permutes = target.vector_bytes == 64 and 1 << format_.bits <= ENTRIES
        self._memory: Value | None = None
        if not self._permutes and format_.codebook:
            self._memory = b.stack(ENTRIES, "f32")
            b.store(b.vector_of(self._numbers), self._memory)

    @cached_property
    def _numbers(self) -> list[float]:
        """What the codes stand for, again and again where they are fewer than a table's; those of a byte have no table."""
        return [self.format.value(code) for code in range(ENTRIES)]

    def value(self, word: Value, code: int) -> Value:
        """What code number ``code`` of each lane of ``word`` (i32) stands for, in f32."""
        b, bit, lanes = self.b, self.format.place(code), split_type(word.type)[0]
        floats = vector_type(lanes, "f32")
        if self._permutes and lanes == ENTRIES:
            index = self._shifted("arith.shrui", word, bit)
            table = b.vector_of(self._numbers)
            return permuted(b, table, index)
        if self._memory is None:
            top = self._shifted("arith.shli", word, 32 - bit - self.format.bits)
            down = "arith.shrsi" if self.format.signed else "arith.shrui"
            return b.cast("arith.sitofp", self._shifted(down, top, 32 - self.format.bits), "f32")
        index = b.op("arith.andi", self._shifted("arith.shrui", word, bit), b.constant(ENTRIES - 1, "i32", lanes))
        pointers = b.element_pointer(self._memory, index, "f32")
        mask, zero = b.constant(True, "i1", lanes), b.constant(0, "f32", lanes)
        return b.emit(
            f"llvm.intr.masked.gather {pointers.name}, {mask.name}, {zero.name} {{alignment = 4 : i32}} "
            f": ({pointers.type}, {mask.type}, {floats}) -> {floats}",
            floats,
        )

    def pairs(self, word: Value, number: int) -> Value:
        """What codes ``2 * number`` and ``2 * number + 1`` of each of 16 lanes stand for, neighbours in bf16."""
        b, lanes = self.b, 2 * ENTRIES
        halves = b.emit(f"vector.bitcast {word.name} : {word.type} to vector<{lanes}xi16>", f"vector<{lanes}xi16>")
        if number:
            halves = b.op("arith.shrui", halves, b.constant(self.format.stored_bits * number, "i16", lanes))
        table = b.vector_of([bits_of(v, "bf16") for v in self._numbers * 2], "i16")  # the index has five bits
        found = b.emit(
            f'llvm.call_intrinsic "llvm.x86.avx512.permvar.hi.512"({table.name}, {halves.name}) '
            f": ({table.type}, {halves.type}) -> {table.type}",
            table.type,
        )
        return b.emit(f"vector.bitcast {found.name} : {found.type} to vector<{lanes}xbf16>", f"vector<{lanes}xbf16>")

    def _shifted(self, op: str, word: Value, by: int) -> Value:
        return self.b.op(op, word, self.b.constant(by, "i32", split_type(word.type)[0])) if by else word
