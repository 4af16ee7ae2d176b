"""Reads and writes of attention's tensors: addresses, storage types, and squares turned in registers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from effc.compiler.codegen.cpu.access import memory_type
from effc.compiler.codegen.cpu.addresses import expr_value
from effc.compiler.codegen.cpu.attention.form import Attention
from effc.compiler.codegen.cpu.lowp import LOW_PRECISION
from effc.compiler.codegen.cpu.ops import OpEmitter
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.codegen.cpu.text import Builder, Value, element_bytes, split_type, vector_type
from effc.compiler.codegen.cpu.threads import Share
from effc.compiler.ir.spec import Instr


@dataclass
class Tensors:
    """``at``: values of ``d0``… (a vector for the lanes' dimension gives a vector of addresses)."""

    b: Builder
    attention: Attention
    target: Target
    share: Share

    def __post_init__(self) -> None:
        self.ops = OpEmitter(self.b, self.target)

    def offset(self, name: str, at: Mapping[str, Value]) -> Value:
        values = {**self.share.symbols, **at}
        zero = self.b.index(0)
        return expr_value(self.b, self.attention.address(name), lambda v: values.get(v, zero))

    def pointer(self, name: str, at: Mapping[str, Value]) -> Value:
        """One pointer, or one a lane."""
        dtype = self.attention.dtype(name)
        base = self.share.pointer(self.attention.operand(name))
        return self.b.element_pointer(base, self.offset(name, at), memory_type(dtype))

    def step(self, name: str, pointer: Value, dim: str, count: Value) -> Value:
        """``pointer`` moved by ``count`` along ``dim``."""
        dtype = memory_type(self.attention.dtype(name))
        return self.b.element_pointer(pointer, self.b.mul(count, self.stride(name, dim)), dtype)

    def stride(self, name: str, dim: str) -> Value:
        """Elements from one position along ``dim`` to the next."""
        factor = self.attention.address(name).coefficient(dim)
        assert factor is not None, "supports() admits only linear addresses"
        return expr_value(self.b, factor, self.share.symbols.__getitem__)

    def contiguous(self, name: str, dim: str) -> bool:
        factor = self.attention.address(name).coefficient(dim)
        return factor is not None and factor.constant == 1

    # -- values -----------------------------------------------------------------------------------------------------
    def load(self, name: str, pointer: Value, lanes: int = 1) -> Value:
        """``lanes`` neighbours from ``pointer``, or one element for each of a vector of pointers, as the accumulator's type."""
        b, dtype = self.b, self.attention.dtype(name)
        element = memory_type(dtype)
        if split_type(pointer.type)[0] == 1:
            return self._widen(b.load(pointer, vector_type(lanes, element)), dtype)
        lanes = split_type(pointer.type)[0]
        type_, mask = vector_type(lanes, element), b.constant(True, "i1", lanes)
        zero = b.emit(f"llvm.mlir.zero : {type_}", type_)
        gathered = b.emit(
            f"llvm.intr.masked.gather {pointer.name}, {mask.name}, {zero.name} {{alignment = {element_bytes(element)} : i32}} "
            f": ({pointer.type}, {mask.type}, {type_}) -> {type_}",
            type_,
        )
        return self._widen(gathered, dtype)

    def store(self, name: str, value: Value, pointer: Value) -> None:
        """To neighbours from ``pointer`` on, or each lane to its own of a vector of pointers."""
        b, dtype = self.b, self.attention.dtype(name)
        narrow = Instr("arith.truncf", (0,), dtype)
        value = (
            value
            if dtype == self.attention.accumulator
            else self.ops.emit(narrow, [value], [self.attention.accumulator])
        )
        if split_type(pointer.type)[0] == 1:
            b.store(value, pointer)
            return
        lanes, element = split_type(value.type)
        mask = b.constant(True, "i1", lanes)
        b.line(
            f"llvm.intr.masked.scatter {value.name}, {pointer.name}, {mask.name} {{alignment = {element_bytes(element)} : i32}} "
            f": {value.type}, {mask.type} into {pointer.type}"
        )

    def load_first(self, name: str, pointer: Value, within: Value) -> Value:
        """Neighbours from ``pointer`` on where ``within`` (i1 a lane) holds, else 0; nothing else is read."""
        b, dtype = self.b, self.attention.dtype(name)
        type_ = vector_type(split_type(within.type)[0], memory_type(dtype))
        zero = b.emit(f"llvm.mlir.zero : {type_}", type_)
        return self._widen(b.masked_load(pointer, within, zero), dtype)

    def added(self, mask: Value) -> Value:
        """What a mask's value adds to a score: 0 or -inf for a bool, true being visible."""
        lanes, element = split_type(mask.type)
        if element != "i1":
            return mask
        kind = self.attention.accumulator
        return self.b.select(mask, self.b.constant(0.0, kind, lanes), self.b.constant("-inf", kind, lanes))

    def _widen(self, value: Value, dtype: str) -> Value:
        if dtype == "i1":
            return self.b.compare("arith.cmpi", "ne", value, self.b.constant(0, "i8", split_type(value.type)[0]))
        if dtype == self.attention.accumulator:
            return value
        kind = self.attention.accumulator
        if dtype in LOW_PRECISION or kind == "f64":
            return self.ops.emit(Instr("arith.extf", (0,), kind), [value], [dtype])
        return self.ops.emit(Instr("arith.truncf", (0,), kind), [value], [dtype])
