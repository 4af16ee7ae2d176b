"""f64 functions built on those of ``double``: hyperbolic ones, their inverses, exponent and logarithms to other bases, tan;
to about 2 ulp.

They follow the identities of fdlibm (s_asinh.c, e_acosh.c, e_atanh.c), with polynomials fitted by ``tools/fit_math.py``.
"""

from __future__ import annotations

import math

from effc.compiler.codegen.cpu.mathlib import coefficients as table
from effc.compiler.codegen.cpu.mathlib import double
from effc.compiler.codegen.cpu.mathlib.builder import Builder, Value
from effc.compiler.codegen.cpu.mathlib.exponential import ROUND_F64
from effc.compiler.codegen.cpu.mathlib.logarithm import ends
from effc.compiler.codegen.cpu.mathlib.trigonometric import guarded

#: log10(2) to 33 bits, so that its product with an exponent is exact, and the rest.
_LOG10_2_HIGH = float.fromhex("0x1.34413509p-2")
_LOG10_2_LOW = float.fromhex("0x1.ef3fde623e256p-35")
#: From here on 1 is lost beside x, and x² + 1 is x².
_LARGE = 2.0**28


def exp2(b: Builder, x: Value) -> Value:
    clamped = b.clamp(x, -1080.0, 1025.0)
    biased = clamped + ROUND_F64
    r = (clamped - (biased - ROUND_F64)) * math.log(2)
    p = b.fma(r * r, b.polynomial(r, table.EXP_F64), r)
    result = double.scaled(b, p + 1.0, double.quotient(b, biased))
    return b.select(x.compare("uno", x), x, result)


def sinh(b: Builder, x: Value) -> Value:
    """(e + e / (e + 1)) / 2, e = expm1(|x|), which is kept as a quarter: e overflows before the result does."""
    quarter = double.quarter_of_expm1(b, b.clamp(b.abs(x), 0.0, 710.6))
    e = b.clamp(quarter * 4.0, 0.0, 1e300)
    result = b.fma(e / (e + 1.0), 0.5, quarter * 2.0)
    return b.select(x.compare("uno", x), x, b.copysign(result, x))


def cosh(b: Builder, x: Value) -> Value:
    half = (double.quarter_of_expm1(b, b.clamp(b.abs(x), 0.0, 710.6)) + 0.25) * 2.0
    return b.select(x.compare("uno", x), x, half + 0.25 / half)


def log2(b: Builder, x: Value) -> Value:
    e, part = double.exponent_and_log(b, x)
    return ends(b, x, b.fma(part, math.log2(math.e), e))


def log10(b: Builder, x: Value) -> Value:
    e, part = double.exponent_and_log(b, x)
    return ends(b, x, b.fma(e, _LOG10_2_HIGH, b.fma(e, _LOG10_2_LOW, part * math.log10(math.e))))


def asinh(b: Builder, x: Value) -> Value:
    t = b.abs(x)
    large = t > _LARGE
    square = b.select(large, 1.0, t * t)
    small = t + square / (b.sqrt(square + 1.0) + 1.0)
    result = double.log1p(b, b.select(large, t, small)) + b.select(large, b.constant(math.log(2), "f64"), 0.0)
    return b.copysign(result, x)


def acosh(b: Builder, x: Value) -> Value:
    t = x - 1.0
    large = x > _LARGE
    root = b.sqrt(b.select(large, 1.0, b.fma(t, t, t + t)))
    result = double.log1p(b, b.select(large, x, t + root)) + b.select(large, b.constant(math.log(2), "f64"), 0.0)
    return b.select(x < 1.0, math.nan, result)


def atanh(b: Builder, x: Value) -> Value:
    t = b.abs(x)
    return b.copysign(double.log1p(b, (t + t) / (1.0 - t)) * 0.5, x)


def tan(b: Builder, x: Value) -> Value:
    bits, sin, cos = double.sin_cos(b, x)
    odd = (bits & 1).equals(1)
    ratio = b.select(odd, -cos, sin) / b.select(odd, sin, cos)
    return guarded(b, "math.tan", x, b.select(x.equals(0.0), x, ratio), double.FAST)
