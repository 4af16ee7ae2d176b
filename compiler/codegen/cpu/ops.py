"""One ``Instr`` that computes (``arith.*``, ``math.*``, ``libm.*``, ``constant``) on vectors of any number of lanes."""

from __future__ import annotations

from collections.abc import Sequence

from effc.compiler.codegen.cpu.bf16_convert import convert, converts
from effc.compiler.codegen.cpu.lowp import LOW_PRECISION, bits_of, from_f32, held_as, to_f32
from effc.compiler.codegen.cpu.mathlib import function_for
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.codegen.cpu.text import Builder, Value, split_type, vector_type
from effc.compiler.ir.spec import Instr

_CASTS = frozenset(
    f"arith.{op}"
    for op in [
        "extf",
        "truncf",
        "sitofp",
        "uitofp",
        "fptosi",
        "fptoui",
        "extsi",
        "extui",
        "trunci",
        "bitcast",
        "index_cast",
    ]
)
_DIVISIONS = frozenset(f"arith.{op}" for op in ["divsi", "divui", "remsi", "remui", "floordivsi", "ceildivsi"])


class OpEmitter:
    """Emits body ops into ``builder`` for ``target``. ``dtype`` arguments name what the body calls the values.

    ``flushes``: bf16 results that are subnormal may become zeros.
    """

    def __init__(self, builder: Builder, target: Target) -> None:
        self.b = builder
        self.target = target
        self.flushes = False

    def constant(self, instr: Instr) -> Value:
        value = instr["value"]
        if instr.dtype in LOW_PRECISION:
            return self.b.constant(bits_of(value, instr.dtype), "i16")
        return self.b.constant(value, instr.dtype)

    def emit(self, instr: Instr, args: Sequence[Value], dtypes: Sequence[str]) -> Value:
        """The result of ``instr`` on ``args``, all of one number of lanes; ``dtypes`` are the args' in the body."""
        op = instr.op
        if op in _CASTS:
            return self._cast(op, args[0], dtypes[0], instr.dtype)
        if op == "arith.select":
            return self.b.select(args[0], args[1], args[2])
        if any(d in LOW_PRECISION for d in dtypes):
            wide = [
                to_f32(self.b, a, d, self.target) if d in LOW_PRECISION else a
                for a, d in zip(args, dtypes, strict=True)
            ]
            dtype = "f32" if instr.dtype in LOW_PRECISION else instr.dtype
            result = self._compute(instr, wide, dtype)
            return self._narrow(result, instr.dtype) if instr.dtype in LOW_PRECISION else result
        return self._compute(instr, args, instr.dtype)

    # -- the single ops ------------------------------------------------------------------------------------------------
    def _compute(self, instr: Instr, args: Sequence[Value], dtype: str) -> Value:
        op = instr.op
        if op in ("arith.cmpf", "arith.cmpi"):
            return self.b.compare(op, instr["predicate"], args[0], args[1])
        if op in ("arith.maximumf", "arith.minimumf"):
            return self.extremum(op == "arith.maximumf", args[0], args[1])
        if op in _DIVISIONS:
            return self._divide(op, args[0], args[1])
        lanes = split_type(args[0].type)[0]
        if op.startswith("libm."):
            return self._each_lane(_libm_name(op[5:], dtype), args, dtype)
        if op.startswith("math.") or op == "arith.remf":
            return self._math(op, args, dtype, lanes)
        return self.b.op(op, *args)

    def extremum(self, largest: bool, x: Value, y: Value) -> Value:
        """max/min that propagates NaN and, of equal values, takes ``y``: what eager's vectors do."""
        ordered = self.b.compare("arith.cmpf", "ogt" if largest else "olt", x, y)
        chosen = self.b.select(ordered, x, y)  # y where either is NaN; one instruction
        lanes, element = split_type(x.type)
        nan = self.b.constant("nan", element, lanes)  # with x itself LLVM would merge the comparisons, and lose that
        return self.b.select(self.b.compare("arith.cmpf", "uno", x, x), nan, chosen)

    def _math(self, op: str, args: Sequence[Value], dtype: str, lanes: int) -> Value:
        found = function_for(op, dtype, lanes, self.target.has("fma"), self.target.vector_bytes == 64)
        if found is not None:
            self.b.declare(*found)
            return self.b.call(found[0], args, vector_type(lanes, dtype))
        if op in ("math.fpowi", "math.ctlz", "math.cttz") or len({a.type for a in args}) > 1:
            types = ", ".join(a.type for a in args)
            return self.b.emit(f"{op} {', '.join(a.name for a in args)} : {types}", args[0].type)
        if op.startswith("math.is"):
            result = vector_type(lanes, "i1")
            return self.b.emit(f"{op} {args[0].name} : {args[0].type}", result)
        if op == "math.fma" and not self.target.has("fma"):
            return self._each_lane("fmaf" if dtype == "f32" else "fma", args, dtype)
        return self.b.op(op, *args)

    def _divide(self, op: str, x: Value, y: Value) -> Value:
        """Integer division that never traps: by 0 it divides by 1 (masked-off lanes hold 0), and the lowest value / -1
        wraps.
        """
        lanes, element = split_type(x.type)
        zero, one = self.b.constant(0, element, lanes), self.b.constant(1, element, lanes)
        bad = self.b.compare("arith.cmpi", "eq", y, zero)
        if not op.endswith("ui"):
            minus = self.b.compare("arith.cmpi", "eq", y, self.b.constant(-1, element, lanes))
            lowest = self.b.compare(
                "arith.cmpi", "eq", x, self.b.constant(-(1 << (int(element[1:]) - 1)), element, lanes)
            )
            bad = self.b.op("arith.ori", bad, self.b.op("arith.andi", minus, lowest))
        y = self.b.select(bad, one, y)
        if op not in ("arith.floordivsi", "arith.ceildivsi"):
            return self.b.op(op, x, y)
        quotient, rest = self.b.op("arith.divsi", x, y), self.b.op("arith.remsi", x, y)
        inexact = self.b.compare("arith.cmpi", "ne", rest, zero)
        x_below, y_below = (self.b.compare("arith.cmpi", "slt", v, zero) for v in (x, y))
        signs_differ = self.b.op("arith.xori", x_below, y_below)
        if op == "arith.floordivsi":
            adjust = self.b.op("arith.andi", inexact, signs_differ)
            return self.b.select(adjust, self.b.op("arith.subi", quotient, one), quotient)
        same = self.b.op("arith.xori", signs_differ, self.b.constant(1, "i1", lanes))
        adjust = self.b.op("arith.andi", inexact, same)
        return self.b.select(adjust, self.b.op("arith.addi", quotient, one), quotient)

    def _cast(self, op: str, value: Value, source: str, result: str) -> Value:
        b, target = self.b, self.target
        if held_as(source) == held_as(result) and (op == "arith.bitcast" or source == result):
            return value
        if op == "arith.bitcast":
            return b.cast(op, value, held_as(result))
        if source in LOW_PRECISION:
            value, source = to_f32(b, value, source, target), "f32"
            if result == "f32":
                return value
            if result in LOW_PRECISION:
                return self._narrow(value, result)
        if result in LOW_PRECISION:
            # As eager does: through f32.
            value = value if source == "f32" else b.cast(op, value, "f32")
            return self._narrow(value, result)
        return b.cast(op, value, result)

    def _narrow(self, value: Value, dtype: str) -> Value:
        if dtype == "bf16" and self.flushes and converts(value, self.target):
            return convert(self.b, value)
        return from_f32(self.b, value, dtype, self.target)

    def _each_lane(self, symbol: str, args: Sequence[Value], dtype: str) -> Value:
        b = self.b
        lanes = split_type(args[0].type)[0]
        types = ", ".join(split_type(a.type)[1] for a in args)
        b.declare(symbol, f"  func.func private @{symbol}({types}) -> {dtype}")
        if lanes == 1:
            return b.call(symbol, args, dtype)
        result = b.constant(0, dtype, lanes)
        for lane in range(lanes):
            scalars = [
                b.emit(
                    f"vector.extract {a.name}[{lane}] : {split_type(a.type)[1]} from {a.type}", split_type(a.type)[1]
                )
                for a in args
            ]
            value = b.call(symbol, scalars, dtype)
            result = b.emit(
                f"vector.insert {value.name}, {result.name} [{lane}] : {dtype} into {result.type}", result.type
            )
        return result


def _libm_name(name: str, dtype: str) -> str:
    """libm's symbol for ``dtype``: the ``f`` variant in f32 (``erf`` ends in f by itself)."""
    return name if dtype != "f32" or (name.endswith("f") and name != "erf") else f"{name}f"
