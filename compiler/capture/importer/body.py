"""Scalar code in the body of a ``linalg.generic``: arithmetic, comparisons, and torch's conversions between dtypes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from effc.compiler.capture.importer.types import (
    BITS,
    LOW_PRECISION,
    UNSIGNED,
    Quotient,
    Scalar,
    Size,
    Tensor,
    is_float,
    simplify,
)
from effc.compiler.ir.errors import UnsupportedError
from effc.compiler.ir.expr import Expr

if TYPE_CHECKING:
    from effc.compiler.capture.importer.builder import Builder

#: What stands for a scalar argument of a point function.
Number = int | float | bool | Expr | Quotient

_SIGNED = {"eq": "eq", "ne": "ne", "lt": "slt", "le": "sle", "gt": "sgt", "ge": "sge"}
_UNSIGNED = {"eq": "eq", "ne": "ne", "lt": "ult", "le": "ule", "gt": "ugt", "ge": "uge"}
_ORDERED = {"eq": "oeq", "ne": "une", "lt": "olt", "le": "ole", "gt": "ogt", "ge": "oge"}


class Body:
    """Emits scalar ops; values carry torch dtypes, so that the signless MLIR op with the right sign is chosen."""

    def __init__(self, builder: Builder) -> None:
        self.builder = builder
        self.lines: list[str] = []

    def emit(self, text: str) -> str:
        name = self.builder.fresh()
        self.lines.append(f"      {name} = {text} loc({self.builder.location})")
        return name

    def constant(self, value: int | float | bool, dtype: torch.dtype | None) -> Scalar:
        return self.builder.constant(value, dtype)

    def known(self, a: Scalar) -> int | float | None:
        """The number that a constant holds; None for any other value."""
        return self.builder.known.get(a.name)

    def like(self, value: int | float | bool, other: Scalar) -> Scalar:
        return self.builder.constant(value, other.dtype)

    def number(self, value: Number, dtype: torch.dtype) -> Scalar:
        """A Python or symbolic number, converted to ``dtype``."""
        if isinstance(value, Expr):
            return self.cast(self.from_index(self.builder.index(simplify(value))), dtype)
        if isinstance(value, Quotient):
            ends = [
                self.cast(self.from_index(self.builder.index(simplify(e))), torch.float64)
                for e in (value.numerator, value.denominator)
            ]
            return self.cast(self.binary("arith.divf", *ends), dtype)
        if isinstance(value, complex):
            raise UnsupportedError("a complex number")
        if not is_float(dtype) and isinstance(value, float):
            value = int(value)
        return self.builder.constant(value, dtype)

    # -- plain ops --------------------------------------------------------------------------------------------------
    def unary(self, op: str, a: Scalar) -> Scalar:
        return Scalar(self.emit(f"{op} {a.name} : {a.type}"), a.dtype)

    def binary(self, op: str, a: Scalar, b: Scalar) -> Scalar:
        if a.dtype != b.dtype:
            raise AssertionError(f"{op} of {a.dtype} and {b.dtype}")
        return Scalar(self.emit(f"{op} {a.name}, {b.name} : {a.type}"), a.dtype)

    def arith(self, op: str, a: Scalar, b: Scalar) -> Scalar:
        """``add``, ``sub`` or ``mul`` of two floats, integers or indices."""
        return self.binary(f"arith.{op}{'f' if is_float(a.dtype) else 'i'}", a, b)

    def add(self, a: Scalar, b: Scalar) -> Scalar:
        return self.arith("add", a, b)

    def sub(self, a: Scalar, b: Scalar) -> Scalar:
        return self.arith("sub", a, b)

    def mul(self, a: Scalar, b: Scalar) -> Scalar:
        return self.arith("mul", a, b)

    def compare(self, relation: str, a: Scalar, b: Scalar) -> Scalar:
        """``eq ne lt le gt ge`` as C's operators: all false on NaN but ``ne``."""
        if is_float(a.dtype):
            text = f"arith.cmpf {_ORDERED[relation]}"
        else:
            text = f"arith.cmpi {(_UNSIGNED if a.dtype in UNSIGNED else _SIGNED)[relation]}"
        return Scalar(self.emit(f"{text}, {a.name}, {b.name} : {a.type}"), torch.bool)

    def select(self, condition: Scalar, a: Scalar, b: Scalar) -> Scalar:
        if a.dtype != b.dtype:
            raise AssertionError(f"select of {a.dtype} and {b.dtype}")
        return Scalar(self.emit(f"arith.select {condition.name}, {a.name}, {b.name} : {a.type}"), a.dtype)

    def invert(self, condition: Scalar) -> Scalar:
        return self.binary("arith.xori", condition, self.constant(True, torch.bool))

    def is_nan(self, a: Scalar) -> Scalar:
        return self.compare("ne", a, a)

    def negate(self, a: Scalar) -> Scalar:
        return self.unary("arith.negf", a) if is_float(a.dtype) else self.sub(self.like(0, a), a)

    def libm(self, name: str, *args: Scalar) -> Scalar:
        """A call of libm's ``name`` (its ``f`` variant for float32)."""
        kind = args[0].type
        symbol = name + "f" if kind == "f32" else name
        signature = f"({', '.join(a.type for a in args)}) -> {kind}"
        self.builder.declare(symbol, signature)
        names = ", ".join(a.name for a in args)
        return Scalar(self.emit(f"func.call @{symbol}({names}) : {signature}"), args[0].dtype)

    # -- indices ----------------------------------------------------------------------------------------------------
    def loop_index(self, dim: int) -> Scalar:
        return Scalar(self.emit(f"linalg.index {dim} : index"), None)

    def size(self, size: Size) -> Scalar:
        return self.builder.index(size)

    def from_index(self, a: Scalar) -> Scalar:
        return Scalar(self.emit(f"arith.index_cast {a.name} : index to i64"), torch.int64)

    def to_index(self, a: Scalar) -> Scalar:
        wide = self.cast(a, torch.int64)
        return Scalar(self.emit(f"arith.index_cast {wide.name} : i64 to index"), None)

    def extract(self, x: Tensor, indices: list[Scalar]) -> Scalar:
        names = ", ".join(i.name for i in indices)
        return Scalar(self.emit(f"tensor.extract {x.name}[{names}] : {x.type}"), x.dtype)

    def check(self, condition: Scalar, message: str) -> None:
        """Raise IndexError(message) after the call where ``condition`` is false."""
        self.lines.append(
            f'      "effc.check"({condition.name}) {{message = "{message}"}} : (i1) -> () loc({self.builder.location})'
        )

    # -- conversions ------------------------------------------------------------------------------------------------
    def cast(self, a: Scalar, dtype: torch.dtype) -> Scalar:
        """``static_cast`` as torch's CPU kernels do it: 16-bit floats go through float32, small integers wrap."""
        source = a.dtype
        if source is None:
            return self.cast(self.from_index(a), dtype)
        if source == dtype:
            return a
        if dtype == torch.bool:
            return self.compare("ne", a, self.like(0, a))
        if is_float(source):
            return self._from_float(a, dtype)
        if is_float(dtype):
            if dtype in LOW_PRECISION:
                return self.cast(self.cast(a, torch.float32), dtype)
            return self._convert("arith.uitofp" if source in UNSIGNED else "arith.sitofp", a, dtype)
        from_bits, to_bits = BITS[a.type], BITS[Scalar("", dtype).type]
        if from_bits == to_bits:
            return Scalar(a.name, dtype)
        if from_bits > to_bits:
            return self._convert("arith.trunci", a, dtype)
        return self._convert("arith.extui" if source in UNSIGNED else "arith.extsi", a, dtype)

    def _from_float(self, a: Scalar, dtype: torch.dtype) -> Scalar:
        if a.dtype in LOW_PRECISION:
            wide = self._convert("arith.extf", a, torch.float32)
            return self.cast(wide, dtype)
        if dtype in LOW_PRECISION:
            return self._convert("arith.truncf", self.cast(a, torch.float32), dtype)
        if is_float(dtype):
            return self._convert("arith.extf" if dtype == torch.float64 else "arith.truncf", a, dtype)
        if dtype in (torch.int64, torch.int32):
            return self._convert("arith.fptosi", a, dtype)
        # Narrow integers wrap on x86: the hardware converts to 32 bits and drops the rest.
        return self.cast(self._convert("arith.fptosi", a, torch.int32), dtype)

    def _convert(self, op: str, a: Scalar, dtype: torch.dtype) -> Scalar:
        target = Scalar("", dtype).type
        return Scalar(self.emit(f"{op} {a.name} : {a.type} to {target}"), dtype)
