"""The memory that one call of a kernel touches, operand by operand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from effc.compiler.ir.program import Call, Pointer, Program
from effc.compiler.ir.spec import ITEM_SIZE, Operand
from effc.costmodel.roofline import operand_bytes

#: What memory is part of: its program (or -1: parameters, which programs share), its base, and which one.
Base = tuple[int, str, int | str]


@dataclass(frozen=True)
class Span:
    """An operand: where it starts and ends in its base, and how many of these bytes are accessed. ``is_result``: of the model."""

    operand: Operand
    base: Base
    start: int
    end: int
    accessed: int
    is_result: bool

    @property
    def reads(self) -> bool:
        return self.operand.role != "write"

    @property
    def writes(self) -> bool:
        return self.operand.role in ("write", "readwrite")

    def meets(self, other: Span) -> bool:
        return self.base == other.base and self.start < other.end and other.start < self.end


def symbols_of(program: Program, call: Call, values: Mapping[str, int]) -> dict[str, int]:
    """The values of the kernel's symbols, where ``values`` are those of the program's."""
    symbols = program.kernels[call.kernel].symbols
    return dict(zip(symbols, (s.evaluate(values) for s in call.symbols), strict=True))


def spans(number: int, program: Program, call: Call, values: Mapping[str, int]) -> Iterator[Span]:
    """Of all operands of a call but scratch memory and empty ones, in program number ``number`` with the values of its symbols."""
    spec, known = program.kernels[call.kernel], symbols_of(program, call, values)
    for operand, pointer, accessed in zip(spec.operands, call.pointers, operand_bytes(spec, known), strict=True):
        size = operand.size.evaluate(known) * ITEM_SIZE[operand.dtype]
        if operand.role != "scratch" and size > 0:
            start, base = pointer.offset.evaluate(values), _base(number, program, pointer)
            yield Span(operand, base, start, start + size, accessed, pointer.base == "output")


def _base(number: int, program: Program, pointer: Pointer) -> Base:
    """Of a result that is written into an input, the input; parameters go by their names."""
    kind, index = pointer.base, pointer.index
    if kind == "output":
        mutated = program.outputs[index].mutates
        kind, index = ("output", index) if mutated is None else ("input", mutated)
    if kind == "input" and program.inputs[index].param:
        return (-1, "param", program.inputs[index].param)
    return (number, kind, index)
