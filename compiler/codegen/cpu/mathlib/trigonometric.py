"""sin, cos, tan. For ``*_wide`` see ``exponential``.

Arguments are reduced by pi/2 in two parts up to ``_FAST``; the few lanes beyond it are libm's, which reduces by as many
digits of pi as they need. Only if a vector holds such a lane does it pay for that.
"""

from __future__ import annotations

import math
from collections.abc import Callable

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


#: (bits of the quotient, sin(r), cos(r)) of x = quotient pi/2 + r.
Reduction = Callable[[Builder, Value], tuple[Value, Value, Value]]


def sine(reduced: Reduction, sign_bit: int, bound: float) -> Callable[[Builder, Value], Value]:
    """sin from ``reduced``, which is right up to ``bound``."""

    def sin(b: Builder, x: Value) -> Value:
        n, s, c = reduced(b, x)
        return guarded(b, "math.sin", x, b.select(x.equals(0.0), x, quadrant(b, n, s, c, sign_bit)), bound)

    return sin


def cosine(reduced: Reduction, sign_bit: int, bound: float) -> Callable[[Builder, Value], Value]:
    """cos from ``reduced``, which is right up to ``bound``."""

    def cos(b: Builder, x: Value) -> Value:
        n, s, c = reduced(b, x)
        return guarded(b, "math.cos", x, quadrant(b, n + 1, s, c, sign_bit), bound)

    return cos


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


sin_wide, cos_wide = sine(_sin_cos_wide, 63, _FAST), cosine(_sin_cos_wide, 63, _FAST)
sin_f32, cos_f32 = sine(_sin_cos_f32, 31, _FAST_F32), cosine(_sin_cos_f32, 31, _FAST_F32)
