"""Loads and stores of one vector of a loop dimension: the access pattern decides the instruction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from effc.compiler.codegen.cpu.addresses import expr_value, lanewise
from effc.compiler.codegen.cpu.lowp import held_as
from effc.compiler.codegen.cpu.text import I64, PTR, Builder, Value, element_bytes, split_type, vector_type
from effc.compiler.ir.expr import Expr, const


@dataclass(frozen=True)
class Pattern:
    """How an address moves along the vector dimension: ``uniform``, ``contiguous``, ``strided`` or ``indexed`` (per
    lane).
    """

    kind: str
    stride: Expr = const(0)


def pattern_of(address: Expr, vector: str | None, varies: Callable[[str], bool]) -> Pattern:
    """``vector``: the vector dimension; ``varies(v)``: whether body value ``v12`` differs from lane to lane."""
    if any(varies(name) for name in address.variables() if name[0] == "v"):
        return Pattern("indexed")
    if vector is None:
        return Pattern("uniform")
    stride = address.coefficient(vector)
    if stride is None:
        return Pattern("indexed")
    if stride.constant == 0:
        return Pattern("uniform")
    return Pattern("contiguous", stride) if stride.constant == 1 else Pattern("strided", stride)


def memory_type(dtype: str) -> str:
    """The element type in memory: a byte for ``i1``, bits for bf16 and f16."""
    return "i8" if dtype == "i1" else held_as(dtype)


@dataclass
class Access:
    """One load or store about to be emitted.

    ``scalar(name)`` gives the value of a variable in lane 0, ``lane(name)`` in every lane; ``mask`` (i1 a lane, or a
    scalar i1 where
    ``lanes`` is 1) switches lanes off. Nothing outside the enabled lanes' addresses is touched. ``limit``: the
    operand's size, given where the address depends on data: a wrong index then stays inside the operand (a ``check``
    reports it), and is not stored.
    """

    b: Builder
    pointer: Value
    dtype: str
    address: Expr
    pattern: Pattern
    lanes: int
    scalar: Callable[[str], Value]
    lane: Callable[[str], Value]
    mask: Value | None
    limit: Value | None = None

    def load(self, other: Value | None) -> Value:
        """The loaded value; ``other`` (default 0) where the mask is false."""
        element = memory_type(self.dtype)
        lanes = 1 if self.pattern.kind == "uniform" else self.lanes
        type_ = vector_type(lanes, element)
        if self.mask is None and self.pattern.kind in ("uniform", "contiguous"):
            return self._to_value(self.b.load(self._first(element), type_))
        fill = self.b.constant(0, element, lanes) if other is None else self._to_memory(other)
        if lanes == 1:
            return self._to_value(self._load_scalar(element, fill))
        mask = self._mask(lanes)
        if self.pattern.kind == "contiguous":
            return self._to_value(self.b.masked_load(self._first(element), mask, fill))
        align = f"{{alignment = {element_bytes(element)} : i32}}"
        pointers = self._pointers(element)
        text = f"llvm.intr.masked.gather {pointers.name}, {mask.name}, {fill.name} {align} : "
        return self._to_value(self.b.emit(f"{text}({pointers.type}, {mask.type}, {type_}) -> {type_}", type_))

    def store(self, value: Value) -> None:
        element = memory_type(self.dtype)
        value = self._to_memory(value)
        lanes = split_type(value.type)[0]
        if self.limit is not None:
            self._drop_outside(lanes)
        if lanes == 1:
            pointer = self._first(element)
            if self.mask is None:
                self.b.store(value, pointer)
            else:
                with self.b.when(self.mask):
                    self.b.store(value, pointer)
            return
        align = f"{{alignment = {element_bytes(element)} : i32}}"
        if self.pattern.kind == "contiguous":
            pointer = self._first(element)
            if self.mask is None:
                self.b.store(value, pointer)
                return
            mask = self._mask(lanes)
            types = f"{value.type}, {mask.type} into {PTR}"
            self.b.line(f"llvm.intr.masked.store {value.name}, {pointer.name}, {mask.name} {align} : {types}")
            return
        step = self.pattern.stride.constant
        if self.pattern.kind == "strided" and step is not None and self.mask is None and element_bytes(element) < 4:
            self._store_each(value, step, element)
            return
        pointers, mask = self._pointers(element), self._mask(lanes)
        types = f"{value.type}, {mask.type} into {pointers.type}"
        self.b.line(f"llvm.intr.masked.scatter {value.name}, {pointers.name}, {mask.name} {align} : {types}")

    # -- internals -----------------------------------------------------------------------------------------------------
    def _store_each(self, value: Value, step: int, element: str) -> None:
        """Lane by lane, ``step`` elements apart: no instruction scatters bytes or words; LLVM would compute addresses in vectors."""
        first = self._first(element)
        for lane in range(self.lanes):
            at = self.b.element_pointer(first, self.b.index(lane * step), element)
            self.b.store(self.b.extract(value, lane), at)

    def _load_scalar(self, element: str, fill: Value) -> Value:
        if self.mask is None:
            return self.b.load(self._first(element), element)
        return self.b.choose(
            self.mask, [element], lambda: [self.b.load(self._first(element), element)], lambda: [fill]
        )[0]

    def _first(self, element: str) -> Value:
        index = expr_value(self.b, self.address, self.scalar)
        if self.limit is not None:
            touched = self.lanes if self.pattern.kind == "contiguous" and self.mask is None else 1
            index = self._clamp(index, touched)
        return self.b.element_pointer(self.pointer, index, element)

    def _clamp(self, index: Value, touched: int) -> Value:
        """``index`` moved into ``[0, limit - touched]``."""
        assert self.limit is not None
        lanes = split_type(index.type)[0]
        last = self.b.broadcast(self.b.sub(self.limit, touched), lanes)
        zero = self.b.constant(0, I64, lanes)
        return self.b.op("arith.maxsi", self.b.op("arith.minsi", index, last), zero)

    def _drop_outside(self, lanes: int) -> None:
        """Mask off the lanes of a store whose address lies outside the operand."""
        assert self.limit is not None
        index = self.b.broadcast(expr_value(self.b, self.address, self.lane if lanes > 1 else self.scalar), lanes)
        inside = self.b.compare("arith.cmpi", "ult", index, self.b.broadcast(self.limit, lanes))
        self.mask = inside if self.mask is None else self.b.op("arith.andi", self.mask, inside)

    def _pointers(self, element: str) -> Value:
        if self.pattern.kind == "strided":
            start = expr_value(self.b, self.address, self.scalar)
            stride = expr_value(self.b, self.pattern.stride, self.scalar)
            steps = lanewise(self.b, self.b.mul, self.b.iota(self.lanes), stride)
            index = lanewise(self.b, self.b.add, start, steps)
        else:
            index = self.b.broadcast(expr_value(self.b, self.address, self.lane), self.lanes)
        if self.limit is not None:
            index = self._clamp(index, 1)
        return self.b.element_pointer(self.pointer, index, element)

    def _mask(self, lanes: int) -> Value:
        return self.b.constant(1, "i1", lanes) if self.mask is None else self.b.broadcast(self.mask, lanes)

    def _to_value(self, stored: Value) -> Value:
        if self.dtype != "i1":
            return stored
        zero = self.b.constant(0, "i8", split_type(stored.type)[0])
        return self.b.compare("arith.cmpi", "ne", stored, zero)

    def _to_memory(self, value: Value) -> Value:
        return self.b.cast("arith.extui", value, "i8") if self.dtype == "i1" else value


def as_index(b: Builder, value: Value) -> Value:
    """A body value used in an address, as i64 (integers keep their sign)."""
    return value if split_type(value.type)[1] == I64 else b.cast("arith.extsi", value, I64)
