"""sin, cos, tan and their inverses. For ``*_wide`` see ``exponential``.

Arguments are reduced by pi/2 in two parts up to ``_FAST``; the few lanes beyond it are libm's, which reduces by as many
digits of pi as they need. Only if a vector holds such a lane does it pay for that.
"""

from __future__ import annotations

import math

from effc.compiler.codegen.cpu.mathlib import coefficients as table
from effc.compiler.codegen.cpu.mathlib.builder import Builder, Value
from effc.compiler.codegen.cpu.mathlib.exponential import ROUND_F32, ROUND_F64

#: pi/2 to 33 bits: its product with a quotient below 2^20 is exact (fdlibm, e_rem_pio2.c).
_HALF_PI_HIGH = float.fromhex("0x1.921fb544p+0")
_HALF_PI_LOW = float.fromhex("0x1.0b4611a626331p-34")
_FAST = 2.0**20
#: pi/2 as a sum of three f32.
_HALF_PI_F32 = (float.fromhex("0x1.921fb6p+0"), float.fromhex("-0x1.777a5cp-25"), float.fromhex("-0x1.ee59dap-50"))
#: Beyond it the three parts of pi/2 lose more than 0.5 ulp of the result.
_FAST_F32 = 48000.0


def _sin_cos_wide(b: Builder, x: Value) -> tuple[Value, Value, Value]:
    """(bits of the quotient, sin(r), cos(r)), where x = quotient pi/2 + r."""
    biased = b.fma(x, 2.0 / math.pi, ROUND_F64)
    n = biased - ROUND_F64
    r = b.fma(n, -_HALF_PI_HIGH, x)
    r = b.fma(n, -_HALF_PI_LOW, r)
    z = r * r
    sin = b.fma(b.polynomial(z, table.SIN_TAIL) * z, r, r)
    cos = b.fma(b.fma(b.polynomial(z, table.COS_TAIL), z, -0.5), z, 1.0)
    return b.bits(biased), sin, cos


def quadrant(b: Builder, n: Value, even: Value, odd: Value, sign_bit: int) -> Value:
    """``even`` or ``odd`` by bit 0 of n, negated by bit 1."""
    value = b.bits(b.select((n & 1).equals(0), even, odd))
    return b.from_bits(value ^ ((n & 2) << (sign_bit - 1)))


def guarded(b: Builder, op: str, x: Value, fast: Value, bound: float) -> Value:
    """``fast`` up to ``bound``; NaN and infinities are libm's too."""

    def slow() -> Value:
        return b.each_lane(op, [x])

    return b.where_any(b.abs(x).compare("uge", bound), fast, slow)


def sin_wide(b: Builder, x: Value) -> Value:
    n, sin, cos = _sin_cos_wide(b, x)
    return guarded(b, "math.sin", x, b.select(x.equals(0.0), x, quadrant(b, n, sin, cos, 63)), _FAST)


def cos_wide(b: Builder, x: Value) -> Value:
    n, sin, cos = _sin_cos_wide(b, x)
    return guarded(b, "math.cos", x, quadrant(b, n + 1, sin, cos, 63), _FAST)


def tan_wide(b: Builder, x: Value) -> Value:
    n, sin, cos = _sin_cos_wide(b, x)
    even = (n & 1).equals(0)
    ratio = b.select(even, sin, -cos) / b.select(even, cos, sin)
    return guarded(b, "math.tan", x, b.select(x.equals(0.0), x, ratio), _FAST)


def _sin_cos_f32(b: Builder, x: Value) -> tuple[Value, Value, Value]:
    biased = b.fma(x, 2.0 / math.pi, ROUND_F32)
    n = biased - ROUND_F32
    r = x
    for part in _HALF_PI_F32:
        r = b.fma(n, -part, r)
    z = r * r
    sin = b.fma(b.polynomial(z, table.SIN_F32) * z, r, r)
    cos = b.fma(b.fma(b.polynomial(z, table.COS_F32), z, -0.5), z, 1.0)
    return b.bits(biased), sin, cos


def sin_f32(b: Builder, x: Value) -> Value:
    n, sin, cos = _sin_cos_f32(b, x)
    return guarded(b, "math.sin", x, b.select(x.equals(0.0), x, quadrant(b, n, sin, cos, 31)), _FAST_F32)


def cos_f32(b: Builder, x: Value) -> Value:
    n, sin, cos = _sin_cos_f32(b, x)
    return guarded(b, "math.cos", x, quadrant(b, n + 1, sin, cos, 31), _FAST_F32)


def _atan_of_unit(b: Builder, t: Value) -> Value:
    """atan(t), |t| <= 1."""
    z = t * t
    return b.fma(b.polynomial(z, table.ATAN_TAIL) * z, t, t)


def atan_wide(b: Builder, x: Value) -> Value:
    t = b.abs(x)
    beyond = t > 1.0
    angle = _atan_of_unit(b, b.select(beyond, 1.0 / t, t))
    return b.copysign(b.select(beyond, math.pi / 2 - angle, angle), x)


def atan2_wide(b: Builder, y: Value, x: Value) -> Value:
    tall, wide = b.abs(y), b.abs(x)
    beyond = tall > wide
    low, high = b.select(beyond, wide, tall), b.select(beyond, tall, wide)
    ratio = b.select(low.equals(high), b.copysign(b.constant(1.0, "f64"), high), low / high)
    ratio = b.select(low.equals(0.0), low, ratio)
    angle = _atan_of_unit(b, ratio)
    angle = b.select(beyond, math.pi / 2 - angle, angle)
    angle = b.select(b.copysign(b.constant(1.0, "f64"), x) < 0.0, math.pi - angle, angle)
    return b.copysign(b.select(x.compare("uno", y), math.nan, angle), y)


def _asin_parts(b: Builder, x: Value) -> tuple[Value, Value]:
    """(|x| > 1/2, asin(s)): s is |x|, or sqrt((1 - |x|)/2) where |x| > 1/2. NaN beyond 1."""
    t = b.abs(x)
    beyond = t > 0.5
    z = b.select(beyond, (1.0 - t) * 0.5, t * t)
    s = b.select(beyond, b.sqrt(z), t)
    return beyond, b.fma(b.polynomial(z, table.ASIN_TAIL) * z, s, s)


def asin_wide(b: Builder, x: Value) -> Value:
    beyond, part = _asin_parts(b, x)
    return b.copysign(b.select(beyond, math.pi / 2 - (part + part), part), x)


def acos_wide(b: Builder, x: Value) -> Value:
    beyond, part = _asin_parts(b, x)
    negative = x < 0.0
    twice = part + part
    far = b.select(negative, math.pi - twice, twice)
    near = math.pi / 2 - b.copysign(part, x)
    return b.select(beyond, far, near)
