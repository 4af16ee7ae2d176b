"""Vector math: MLIR text for the elementary functions that LLVM would call libm for, lane by lane.

``function_for("math.exp", "f32", 16)`` gives the name and the text of a private function on ``vector<16xf32>``, to be
declared once in a kernel's module and inlined. How each is computed, and its measured error, is in ``docs/math.md``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from effc.compiler.codegen.cpu.mathlib import (
    double,
    double_derived,
    exponential,
    inverse,
    logarithm,
    power,
    special,
    trigonometric,
)
from effc.compiler.codegen.cpu.mathlib.builder import Builder, Value

Body = Callable[..., Value]

#: op → body in f64 whose result, rounded to f32, is right.
WIDE: dict[str, Body] = {
    "math.exp": exponential.exp_wide,
    "math.exp2": exponential.exp2_wide,
    "math.expm1": exponential.expm1_wide,
    "math.sinh": exponential.sinh_wide,
    "math.cosh": exponential.cosh_wide,
    "math.tanh": exponential.tanh_wide,
    "math.erf": special.erf_wide,
    "math.erfc": special.erfc_wide,
    "math.log": logarithm.log_wide,
    "math.log2": logarithm.log2_wide,
    "math.log10": logarithm.log10_wide,
    "math.log1p": logarithm.log1p_signed_wide,
    "math.asinh": logarithm.asinh_wide,
    "math.acosh": logarithm.acosh_wide,
    "math.atanh": logarithm.atanh_wide,
    "math.sin": trigonometric.sin_wide,
    "math.cos": trigonometric.cos_wide,
    "math.tan": trigonometric.tan_wide,
    "math.asin": inverse.WIDE.asin,
    "math.acos": inverse.WIDE.acos,
    "math.atan": inverse.WIDE.atan,
    "math.atan2": inverse.WIDE.atan2,
    "math.powf": power.pow_wide,
    "math.cbrt": power.cbrt_wide,
}

#: op → body in f32, for targets with fma.
FUSED: dict[str, Body] = {
    "math.exp": exponential.exp_full_f32,
    "math.exp2": exponential.exp2_f32,
    "math.tanh": exponential.tanh_f32,
    "math.erf": special.erf_f32,
    "math.log": logarithm.log_f32,
    "math.log1p": logarithm.log1p_f32,
    "math.sin": trigonometric.sin_f32,
    "math.cos": trigonometric.cos_f32,
}

#: op → body in f64.
DOUBLE: dict[str, Body] = {
    "math.exp": double.exp,
    "math.expm1": double.expm1,
    "math.log": double.log,
    "math.log1p": double.log1p,
    "math.tanh": double.tanh,
    "math.erf": double.erf,
    "math.sin": double.sin,
    "math.cos": double.cos,
    "math.exp2": double_derived.exp2,
    "math.sinh": double_derived.sinh,
    "math.cosh": double_derived.cosh,
    "math.log2": double_derived.log2,
    "math.log10": double_derived.log10,
    "math.asinh": double_derived.asinh,
    "math.acosh": double_derived.acosh,
    "math.atanh": double_derived.atanh,
    "math.tan": double_derived.tan,
    "math.asin": inverse.DOUBLE.asin,
    "math.acos": inverse.DOUBLE.acos,
    "math.atan": inverse.DOUBLE.atan,
    "math.atan2": inverse.DOUBLE.atan2,
}

#: op → body in the op's own type, whichever it is.
GENERIC: dict[str, Body] = {
    "math.rsqrt": power.rsqrt,
    "math.round": power.round_away,
}

_BINARY = frozenset({"math.powf", "math.atan2", "math.fpowi", "math.ipowi"})


@lru_cache(maxsize=256)
def function_for(op: str, dtype: str, lanes: int, fma: bool = True, avx512: bool = False) -> tuple[str, str] | None:
    """(name, text) of the function for ``op`` on ``lanes`` elements of ``dtype``, or None where the plain op is best.

    ``lanes`` 1 means scalars. ``fma``, ``avx512``: whether the target has them. The text is self-contained: on rare
    paths it holds scalar ``math`` ops, which ``convert-math-to-llvm`` and ``convert-math-to-libm`` turn into libm's
    calls. Arguments and result have the op's own types; the exponent of ``math.fpowi`` is i32.
    """
    b = Builder(lanes, fma, avx512)
    arguments = [b.argument(k, dtype) for k in range(2 if op in _BINARY else 1)]
    if op == "math.fpowi":
        arguments[1] = b.argument(1, "i32")
    result = _body(b, op, dtype, arguments)
    if result is None:
        return None
    name = f"vec_{op.removeprefix('math.')}_{dtype}x{lanes}{'' if fma else '_nofma'}"
    return name, b.function(name, arguments, result)


def _body(b: Builder, op: str, dtype: str, arguments: list[Value]) -> Value | None:
    if op == "math.ipowi":
        return power.integer_power(b, *arguments) if dtype in ("i8", "i16", "i32", "i64") else None
    if dtype not in ("f32", "f64"):
        return None
    if op in GENERIC:
        return GENERIC[op](b, *arguments)
    if op == "math.fpowi":
        n = b.cast("arith.sitofp", arguments[1], "f64")
        if dtype == "f64":
            return b.each_lane("math.powf", [arguments[0], n])
        return b.narrow(power.pow_wide(b, b.widen(arguments[0]), n))
    if op not in WIDE:
        return None
    if dtype == "f64" and op in DOUBLE:
        return DOUBLE[op](b, *arguments)
    if dtype == "f64":
        return None if b.lanes == 1 else b.each_lane(op, arguments)
    if b.has_fma and op in FUSED:
        return FUSED[op](b, *arguments)
    return b.narrow(WIDE[op](b, *(b.widen(a) for a in arguments)))
