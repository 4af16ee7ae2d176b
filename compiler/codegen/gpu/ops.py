"""One ``Instr`` that computes (``arith.*``, ``math.*``, ``libm.*``, ``constant``, ``decode``) on tiles.

bf16 and f16 are computed in f32 and rounded after each instruction, as eager does. Functions are libdevice's, and division and
square roots of f32 are rounded: Triton's own ``math.exp``, ``arith.divf`` and the like are approximations.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from torch_mlir import ir

from effc.compiler.codegen.gpu.builder import Builder, dtype_of
from effc.compiler.codegen.gpu.indices import widened
from effc.compiler.ir.errors import LoweringError
from effc.compiler.ir.formats import Format
from effc.compiler.ir.spec import Instr

LOW_PRECISION = frozenset({"bf16", "f16"})
_FLOATS = LOW_PRECISION | {"f32", "f64"}

#: ``math`` and ``libm`` names → libdevice's, where they are not the same; all in f32 (with an ``f`` behind) and f64.
_LIBDEVICE = {"powf": "pow", "roundeven": "rint", "remf": "fmod"}
_FUNCTIONS = frozenset({
    "acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "cbrt", "copysign", "cos", "cosh", "erf", "erfc", "exp",
    "exp2", "expm1", "hypot", "lgamma", "log", "log10", "log1p", "log2", "powf", "remf", "roundeven", "rsqrt", "sin", "sinh",
    "tan", "tanh", "trunc",
})  # fmt: skip
#: Ops of ``arith`` and ``math`` that Triton compiles as they are meant.
_PLAIN = frozenset({
    "arith.addf", "arith.subf", "arith.mulf", "arith.negf", "arith.addi", "arith.subi", "arith.muli", "arith.andi", "arith.ori",
    "arith.xori", "arith.shli", "arith.shrsi", "arith.shrui", "arith.maxsi", "arith.minsi", "arith.maxui", "arith.minui",
    "math.absf", "math.absi", "math.ceil", "math.floor", "math.fma",
})  # fmt: skip
_INTEGER_CASTS = frozenset({"arith.extsi", "arith.extui", "arith.trunci", "arith.index_cast"})
_FLOAT_CASTS = frozenset({"arith.extf", "arith.truncf", "arith.sitofp", "arith.uitofp", "arith.fptosi", "arith.fptoui"})
_DIVISIONS = frozenset({
    "arith.divsi", "arith.divui", "arith.remsi", "arith.remui", "arith.floordivsi", "arith.ceildivsi",
})  # fmt: skip
_OTHERS = frozenset({
    "constant", "decode", "arith.cmpf", "arith.cmpi", "arith.select", "arith.bitcast", "arith.divf", "arith.maximumf",
    "arith.minimumf", "math.sqrt", "math.isnan", "math.isinf", "math.isfinite",
})  # fmt: skip
KNOWN = _PLAIN | _INTEGER_CASTS | _FLOAT_CASTS | _DIVISIONS | _OTHERS


def known(op: str) -> bool:
    """Whether ``Ops.emit`` has the op."""
    return op in KNOWN or _function(op) in _FUNCTIONS


def _function(op: str) -> str:
    """The name in `_FUNCTIONS`, if it is there; libm's of f32 end in ``f``."""
    name = op.split(".", 1)[1] if op.startswith(("math.", "libm.")) or op == "arith.remf" else ""
    return name[:-1] if op.startswith("libm.") and name not in _FUNCTIONS else name


class Ops:
    """Emits where the builder stands."""

    def __init__(self, b: Builder) -> None:
        self.b = b

    def emit(self, instr: Instr, args: Sequence[ir.Value]) -> ir.Value:
        """The result of ``instr`` on tiles or scalars; LoweringError: an op that is not ``known``."""
        op, dtype, b = instr.op, instr.dtype, self.b
        if op == "constant":
            return b.constant(instr["value"], dtype)
        if op == "decode":
            return self._decode(Format.of(instr), args[0])
        if op == "arith.select":
            return b.select(*args)
        if op == "arith.bitcast":
            return args[0] if dtype_of(args[0]) == dtype else b.bitcast(args[0], dtype)
        if op in _INTEGER_CASTS or op in _FLOAT_CASTS:
            return self.cast(op, args[0], dtype)
        wide = [self.cast("arith.extf", a, "f32") if dtype_of(a) in LOW_PRECISION else a for a in args]
        found = self._compute(instr, wide)
        return self.cast("arith.truncf", found, dtype) if dtype in LOW_PRECISION else found

    def cast(self, op: str, value: ir.Value, dtype: str) -> ir.Value:
        """``value`` as ``dtype``; between 16-bit floats and anything but f32 through f32, as eager does."""
        b, have = self.b, dtype_of(value)
        if have == dtype:
            return value
        if op == "arith.index_cast":
            return widened(b, value, dtype)
        if have in LOW_PRECISION and dtype != "f32":
            value, have = b.op("arith.extf", value, dtype="f32"), "f32"
            return self.cast(
                "arith.truncf" if dtype in LOW_PRECISION else "arith.extf" if dtype == "f64" else op, value, dtype
            )
        if dtype in LOW_PRECISION and have != "f32":
            return b.op("arith.truncf", self.cast(op, value, "f32"), dtype=dtype)
        return b.op(op, value, dtype=dtype)

    # -- the single ops -----------------------------------------------------------------------------------------------
    def _compute(self, instr: Instr, args: Sequence[ir.Value]) -> ir.Value:
        op, b = instr.op, self.b
        if op in ("arith.cmpf", "arith.cmpi"):
            return b.compare(op, instr["predicate"], args[0], args[1])
        if op in _PLAIN:
            return b.op(op, *args)
        if op in _DIVISIONS:
            return self._divide(op, *args)
        if op in ("arith.maximumf", "arith.minimumf"):
            return self.extremum(op == "arith.maximumf", *args)
        if op == "arith.divf":
            return b.precise(*args) if dtype_of(args[0]) == "f32" else b.op(op, *args)
        if op == "math.sqrt":
            return b.precise(args[0]) if dtype_of(args[0]) == "f32" else b.op(op, args[0])
        if op == "math.isnan":
            return b.compare("arith.cmpf", "uno", args[0], args[0])
        if op in ("math.isinf", "math.isfinite"):
            infinity = b.constant("inf", dtype_of(args[0]))
            return b.compare("arith.cmpf", "oeq" if op == "math.isinf" else "olt", b.op("math.absf", args[0]), infinity)
        name = _function(op)
        if name not in _FUNCTIONS:
            raise LoweringError(f"the GPU's code generator has no {op}")
        return b.extern(f"__nv_{_LIBDEVICE.get(name, name)}{'f' if dtype_of(args[0]) == 'f32' else ''}", *args)

    def extremum(self, largest: bool, x: ir.Value, y: ir.Value) -> ir.Value:
        """max or min; NaN where one of both is."""
        b = self.b
        if dtype_of(x) == "f32":
            return b.op("arith.maximumf" if largest else "arith.minimumf", x, y)
        better = b.compare("arith.cmpf", "ogt" if largest else "olt", x, y)
        nan = b.compare("arith.cmpf", "uno", x, x)
        return b.select(b.op("arith.ori", better, nan), x, y)

    def _divide(self, op: str, x: ir.Value, y: ir.Value) -> ir.Value:
        """Integer division; by 0 it divides by 1: what eager gives for it is not defined, what LLVM does with it neither."""
        b, dtype = self.b, dtype_of(x)
        zero, one = b.constant(0, dtype), b.constant(1, dtype)
        y = b.select(b.compare("arith.cmpi", "eq", y, zero), one, y)
        if op not in ("arith.floordivsi", "arith.ceildivsi"):
            return b.op(op, x, y)
        quotient, rest = b.op("arith.divsi", x, y), b.op("arith.remsi", x, y)
        inexact = b.compare("arith.cmpi", "ne", rest, zero)
        below = [b.compare("arith.cmpi", "slt", v, zero) for v in (x, y)]
        if op == "arith.floordivsi":
            differ = b.compare("arith.cmpi", "ne", *below)
            return b.select(b.op("arith.andi", inexact, differ), b.op("arith.subi", quotient, one), quotient)
        same = b.compare("arith.cmpi", "eq", *below)
        return b.select(b.op("arith.andi", inexact, same), b.op("arith.addi", quotient, one), quotient)

    def _decode(self, format_: Format, code: ir.Value) -> ir.Value:
        b, dtype = self.b, dtype_of(code)
        if not format_.codebook:
            free = 8 - format_.bits
            high = b.op("arith.shli", code, b.constant(free, dtype))
            low = b.op("arith.shrsi" if format_.signed else "arith.shrui", high, b.constant(free, dtype))
            return b.op("arith.sitofp" if format_.signed else "arith.uitofp", low, dtype="f32")
        # Of two numbers a bit of the code takes one, by masks and not by predicates, of which there are too few.
        wide = b.op("arith.extui", code, dtype="i32")
        values = [b.constant(struct.unpack("<i", struct.pack("<f", v))[0], "i32") for v in format_.codebook]
        for bit in range(format_.bits):
            mask = b.op("arith.shrsi", b.op("arith.shli", wide, b.constant(31 - bit, "i32")), b.constant(31, "i32"))
            values = [
                b.op("arith.xori", even, b.op("arith.andi", b.op("arith.xori", even, odd), mask))
                for even, odd in zip(values[::2], values[1::2], strict=True)
            ]
        return b.bitcast(values[0], "f32")
