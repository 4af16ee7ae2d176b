"""f64 functions built on those of ``double``: hyperbolic ones, inverse ones, logarithms to other bases; to about 2 ulp.

The splitting of arctangent's range at tan(pi/8) and tan(3 pi/8) is Cephes' (S. L. Moshier, atan.c); the rest follows the
identities of fdlibm (e_asin.c, s_asinh.c, e_acosh.c, e_atanh.c), with polynomials fitted by ``tools/fit_math.py``.
"""

from __future__ import annotations

import math

from effc.compiler.codegen.cpu.mathlib import coefficients as table
from effc.compiler.codegen.cpu.mathlib import double
from effc.compiler.codegen.cpu.mathlib.builder import Builder, Value
from effc.compiler.codegen.cpu.mathlib.exponential import ROUND_F64
from effc.compiler.codegen.cpu.mathlib.logarithm import ends
from effc.compiler.codegen.cpu.mathlib.trigonometric import guarded

#: What pi/2 and pi lack as f64.
_HALF_PI_LOW = 6.123233995736766e-17
_PI_LOW = 2 * _HALF_PI_LOW
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


def _atan_of_unit(b: Builder, t: Value) -> Value:
    """atan(t), 0 <= t <= 1."""
    beyond = t > math.tan(math.pi / 8)
    u = b.select(beyond, (t - 1.0) / (t + 1.0), t)
    z = u * u
    angle = b.fma(b.polynomial(z, table.ATAN_F64) * z, u, u)
    return b.select(beyond, math.pi / 4 + (angle + _HALF_PI_LOW / 2), angle)


def atan(b: Builder, x: Value) -> Value:
    t = b.abs(x)
    beyond = t > 1.0
    angle = _atan_of_unit(b, b.select(beyond, 1.0 / t, t))
    return b.copysign(b.select(beyond, math.pi / 2 - (angle - _HALF_PI_LOW), angle), x)


def atan2(b: Builder, y: Value, x: Value) -> Value:
    tall, wide = b.abs(y), b.abs(x)
    beyond = tall > wide
    low, high = b.select(beyond, wide, tall), b.select(beyond, tall, wide)
    one = b.constant(1.0, "f64")
    ratio = b.select(low.equals(high), one, low / high)
    ratio = b.select(low.equals(0.0), low, ratio)
    angle = _atan_of_unit(b, ratio)
    angle = b.select(beyond, math.pi / 2 - (angle - _HALF_PI_LOW), angle)
    angle = b.select(b.copysign(one, x) < 0.0, math.pi - (angle - _PI_LOW), angle)
    return b.copysign(b.select(x.compare("uno", y), math.nan, angle), y)


def _asin_parts(b: Builder, x: Value) -> tuple[Value, Value]:
    """(|x| > 1/2, asin(s)): s is |x|, or sqrt((1 - |x|)/2) where |x| > 1/2. NaN beyond 1."""
    t = b.abs(x)
    beyond = t > 0.5
    z = b.select(beyond, (1.0 - t) * 0.5, t * t)
    s = b.select(beyond, b.sqrt(z), t)
    return beyond, b.fma(b.polynomial(z, table.ASIN_F64) * z, s, s)


def asin(b: Builder, x: Value) -> Value:
    beyond, part = _asin_parts(b, x)
    return b.copysign(b.select(beyond, math.pi / 2 - (part + part - _HALF_PI_LOW), part), x)


def acos(b: Builder, x: Value) -> Value:
    beyond, part = _asin_parts(b, x)
    twice = part + part
    far = b.select(x < 0.0, math.pi - (twice - _PI_LOW), twice)
    near = math.pi / 2 - (b.copysign(part, x) - _HALF_PI_LOW)
    return b.select(beyond, far, near)
