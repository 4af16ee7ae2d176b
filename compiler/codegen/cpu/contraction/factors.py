"""One step along K: load a value of each row and a vector of each column block, convert, multiply and accumulate."""

from __future__ import annotations

from dataclasses import dataclass

from effc.compiler.codegen.cpu.access import memory_type
from effc.compiler.codegen.cpu.bf16_pairs import dot_pairs
from effc.compiler.codegen.cpu.byte_dots import dot_bytes
from effc.compiler.codegen.cpu.contraction.byte_factors import is_unsigned
from effc.compiler.codegen.cpu.contraction.form import is_codes
from effc.compiler.codegen.cpu.contraction.roles import Nest
from effc.compiler.codegen.cpu.contraction.sides import Side
from effc.compiler.codegen.cpu.ops import OpEmitter
from effc.compiler.codegen.cpu.text import PTR, Builder, Value, element_bytes, split_type, vector_type
from effc.compiler.ir.spec import Instr


@dataclass(frozen=True)
class Step:
    """``lanes`` accumulators of type ``accumulator``; ``group`` neighbours of K lie together in the packed right factor, as many as fill
    an accumulator; ``dot``: their products are summed together; ``turned``: the right factor was copied as accumulators, or pairs of
    their size where products of pairs are summed.
    """

    b: Builder
    nest: Nest
    lanes: int
    accumulator: str
    group: int
    dot: bool
    ops: OpEmitter
    turned: bool = False

    @property
    def type(self) -> str:
        return vector_type(self.lanes, self.accumulator)

    @property
    def rounds(self) -> bool:
        """Whether rounding errors of a long sum show in the result: those of low precision factors are far below theirs."""
        dtypes = {self.nest.spec.operands[side.operand].dtype for side in (self.nest.left, self.nest.right)}
        return bool(dtypes & {"f32", "f64"}) and self.accumulator[0] == "f" and (self.group == 1 or is_codes(self.nest))

    def zero(self) -> Value:
        return self.b.constant(0, self.accumulator, self.lanes)

    def accumulate(self, total: Value, left: list[Value], right: list[Value]) -> Value:
        b = self.b
        for x, y in zip(left, right, strict=True):
            if self.dot and self.group == 4:
                total = dot_bytes(b, self.ops.target, total, *((x, y) if self._is_unsigned(self.nest.left) else (y, x)))
            elif self.dot:
                total = dot_pairs(b, total, x, y)
            elif self.accumulator[0] == "f":
                total = b.op("math.fma", x, y, total)
            else:
                total = b.op("arith.addi", total, b.op("arith.muli", x, y))
        return total

    # -- left: rows -------------------------------------------------------------------------------------------------
    def left(self, pointer: Value, points: int, across: Value, mask: Value | None) -> list[Value]:
        """The row's factor in all lanes. ``points``: how many of a group's neighbours, ``across`` elements apart, K still has."""
        b, side = self.b, self.nest.left
        if self.nest.wise:
            return [self.convert(side, self.vector(pointer, self.memory(side), mask))]
        if self.group == 1:
            return [b.broadcast(self.convert(side, b.load(pointer, self.memory(side))), self.lanes)]
        if not self.dot:
            values = [self.convert(side, value) for value in self._neighbours(pointer, points, across)]
            zeros = [b.constant(0, "f32")] * (self.group - points)
            return [b.broadcast(v, self.lanes) for v in (*values, *zeros)]
        wide = b.broadcast(self._word(pointer, points, across), self.lanes)
        if self.group == 4:
            return [wide]
        both = vector_type(2 * self.lanes, "bf16")
        return [b.emit(f"vector.bitcast {wide.name} : {wide.type} to {both}", both)]

    def _neighbours(self, pointer: Value, points: int, across: Value) -> list[Value]:
        b, element = self.b, self.memory(self.nest.left)
        return [b.load(b.element_pointer(pointer, b.mul(across, i), element), element) for i in range(points)]

    def _word(self, pointer: Value, points: int, across: Value) -> Value:
        """A group of neighbours as one i32, the first in its lowest bits, zeros for those that K does not have."""
        b = self.b
        size = element_bytes(self.memory(self.nest.left))
        if points == self.group and b.integer_of(across) == 1:
            return b.emit(f"llvm.load {pointer.name} {{alignment = {size} : i64}} : {PTR} -> i32", "i32")
        word = b.constant(0, "i32")
        for i, value in enumerate(self._neighbours(pointer, points, across)):
            shifted = b.op("arith.shli", b.cast("arith.extui", value, "i32"), b.constant(8 * size * i, "i32"))
            word = b.op("arith.ori", word, shifted)
        return word

    def _is_unsigned(self, side: Side) -> bool:
        return is_unsigned(self.nest, side)

    # -- right: columns ---------------------------------------------------------------------------------------------
    def right(self, pointer: Value, mask: Value | None, stride: Value | None) -> list[Value]:
        """``lanes`` columns; ``stride``: a vector of their offsets where they are not contiguous."""
        b, side = self.b, self.nest.right
        if self.turned:
            loaded = b.load(pointer, self.type)
            both = vector_type(2 * self.lanes, "bf16")
            return [b.emit(f"vector.bitcast {loaded.name} : {loaded.type} to {both}", both) if self.dot else loaded]
        if self.group == 1:
            return [self.convert(side, self.vector(pointer, self.memory(side), mask, stride))]
        if self.group == 4:
            return [b.load(pointer, self.type)]
        both = vector_type(2 * self.lanes, "bf16")
        pairs = b.load(pointer, both)
        if self.dot:
            return [pairs]
        words_type, floats = vector_type(self.lanes, "i32"), vector_type(self.lanes, "f32")
        words = b.emit(f"vector.bitcast {pairs.name} : {both} to {words_type}", words_type)
        low = b.op("arith.shli", words, b.constant(16, "i32", self.lanes))
        high = b.op("arith.andi", words, b.constant(-65536, "i32", self.lanes))
        return [b.emit(f"arith.bitcast {v.name} : {words_type} to {floats}", floats) for v in (low, high)]

    def vector(self, pointer: Value, element: str, mask: Value | None, offsets: Value | None = None) -> Value:
        """``lanes`` elements from ``pointer`` on, zero where ``mask`` is off."""
        b, type_ = self.b, vector_type(self.lanes, element)
        if offsets is None and mask is None:
            return b.load(pointer, type_)
        zero = b.emit(f"llvm.mlir.zero : {type_}", type_)
        if offsets is None:
            assert mask is not None
            return b.masked_load(pointer, mask, zero)
        align = f"{{alignment = {element_bytes(element)} : i32}}"
        mask = mask or b.constant(True, "i1", self.lanes)
        pointers = b.element_pointer(pointer, offsets, element)
        return b.emit(
            f"llvm.intr.masked.gather {pointers.name}, {mask.name}, {zero.name} {align} "
            f": ({pointers.type}, {mask.type}, {type_}) -> {type_}",
            type_,
        )

    # -- conversions ------------------------------------------------------------------------------------------------
    def memory(self, side: Side) -> str:
        """The element type in which the operand of ``side`` is read: low-bit codes by words of them."""
        if side.format is not None:
            return "i32"
        return memory_type(self.nest.spec.operands[side.operand].dtype)

    @property
    def right_memory(self) -> str:
        """The element type in which the tile reads the right factor."""
        return self.accumulator if self.turned else self.memory(self.nest.right)

    def convert(self, side: Side, value: Value) -> Value:
        """From memory's type, through the conversions of the body, to the accumulator's."""
        b, body = self.b, self.nest.spec.body
        dtype = self.nest.spec.operands[side.operand].dtype
        if dtype == "i1":
            value = b.compare("arith.cmpi", "ne", value, b.constant(0, "i8", split_type(value.type)[0]))
        for i in side.chain:
            value = self.ops.emit(body[i], [value], [dtype])
            dtype = body[i].dtype
        if dtype == self.accumulator:
            return value
        widen = "extf" if self.accumulator[0] == "f" else "extui" if dtype == "i1" else "extsi"
        return self.ops.emit(Instr(f"arith.{widen}", (0,), self.accumulator), [value], [dtype])
