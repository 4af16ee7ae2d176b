"""Rounding to bytes, as quantizations write it: ``trunci(fptosi(clamp(roundeven(y) + zero, low, high)))``, in fewer instructions.

One instruction rounds to the nearest integer, ties to even, and converts. It gives the lowest integer for what does not fit and for NaN,
whose byte is then 0, as in eager; so the upper limit is taken before. Limits may: rounding is monotone and keeps integers. A clamp of what
``y`` is a multiple of, such as a ReLU's, has no effect where the limits of the bytes are tighter.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

from effc.compiler.codegen.cpu.target import Target
from effc.compiler.codegen.cpu.text import Builder, Value, split_type, vector_type
from effc.compiler.ir.spec import Instr

#: ``vcvtps2dq`` by its lanes; with 16 it takes a mask and a rounding mode, here the current one, to nearest even.
_CONVERSIONS = {16: "avx512.mask.cvtps2dq.512", 8: "avx.cvt.ps2dq.256", 4: "sse2.cvtps2dq"}
_CURRENT_MODE = 4


@dataclass(frozen=True)
class Saturation:
    """A byte is ``clamp(round(y) + zero, low, high)``; ``y`` is the body's value of that number, times ``factor`` where it is given: the
    number of a constant, which is ``times`` (without one 1).
    """

    value: int
    factor: int | None
    times: float
    zero: float
    low: float
    high: float


def find(body: Sequence[Instr], at: int) -> Saturation | None:
    """What instruction ``at`` saturates; None where it is not such a conversion."""
    if body[at].op != "arith.trunci" or body[at].dtype != "i8" or body[body[at].args[0]].op != "arith.fptosi":
        return None
    value, limits = body[body[at].args[0]].args[0], dict[bool, float]()
    while len(limits) < 2:
        clamp = _clamp(body, value)
        if clamp is None or clamp[0] in limits:
            return None
        limits[clamp[0]], value = clamp[1], clamp[2]
    low, high, zero = limits[True], limits[False], 0.0
    if low != int(low) or high != int(high) or not -128 <= low <= high <= 255:
        return None
    if body[value].op == "arith.addf":
        value, constant = body[value].args
        known = _constant(body, constant)
        if known is None or known != int(known) or abs(known) > 255:
            return None
        zero = known
    if body[value].op != "math.roundeven" or body[value].dtype != "f32":
        return None
    value = body[value].args[0]
    factor, times = None, 1.0
    if body[value].op == "arith.mulf" and (known := _constant(body, body[value].args[1])) is not None and known > 0:
        (value, factor), times = body[value].args, known
    while (clamp := _clamp(body, value)) is not None:
        is_low, limit, inner = clamp
        reached = _single(limit * times)
        if reached > low - zero if is_low else reached < high - zero:
            break
        value = inner
    return Saturation(value, factor, times, zero, low, high)


def emit(b: Builder, target: Target, found: Saturation, y: Value) -> Value | None:
    """The bytes of ``y`` (f32), in i8; None where no such instruction takes its lanes."""
    lanes = split_type(y.type)[0]
    if lanes * 4 > target.vector_bytes or lanes not in _CONVERSIONS:
        return None
    zero = int(found.zero)
    high, low = (b.constant(limit - zero, "f32", lanes) for limit in (found.high, found.low))
    y = b.select(b.compare("arith.cmpf", "olt", high, y), high, y)  # NaN stays
    if found.low:
        y = b.select(b.compare("arith.cmpf", "ogt", low, y), low, y)
    number = _rounded(b, y, lanes)
    if not found.low:
        number = b.op("arith.maxsi", number, b.constant(-zero, "i32", lanes))
    if zero:
        number = b.op("arith.addi", number, b.constant(zero, "i32", lanes))
    if found.low and zero:
        number = b.select(b.compare("arith.cmpf", "ord", y, y), number, b.constant(0, "i32", lanes))
    return b.cast("arith.trunci", number, "i8")


def _rounded(b: Builder, y: Value, lanes: int) -> Value:
    """The nearest integers in i32, the lowest one for what does not fit."""
    to = vector_type(lanes, "i32")
    if lanes != 16:
        return b.emit(f'llvm.call_intrinsic "llvm.x86.{_CONVERSIONS[lanes]}"({y.name}) : ({y.type}) -> {to}', to)
    none, all_, mode = b.constant(0, "i32", lanes), b.constant(-1, "i16"), b.constant(_CURRENT_MODE, "i32")
    return b.emit(
        f'llvm.call_intrinsic "llvm.x86.{_CONVERSIONS[lanes]}"({y.name}, {none.name}, {all_.name}, {mode.name}) '
        f": ({y.type}, {to}, i16, i32) -> {to}",
        to,
    )


def _clamp(body: Sequence[Instr], value: int) -> tuple[bool, float, int] | None:
    """Whether ``value`` is at least (true) or at most a constant, which, and of what."""
    if body[value].op != "arith.select":
        return None
    condition, limit, other = body[value].args
    known, compared = _constant(body, limit), body[condition]
    if known is None or compared.op != "arith.cmpf" or compared.args != (limit, other):
        return None
    predicate = compared["predicate"]
    return (predicate == "ogt", known, other) if predicate in ("ogt", "olt") else None


def _constant(body: Sequence[Instr], at: int) -> float | None:
    """The number that an f32 constant is."""
    instr = body[at]
    if instr.op != "constant" or instr.dtype != "f32" or not isinstance(instr["value"], (int, float)):
        return None
    return float(instr["value"])


def _single(number: float) -> float:
    """Rounded to float32; infinite where that holds no such number."""
    return ctypes.c_float(number).value
