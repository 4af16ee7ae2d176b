"""exp, exp2, expm1 and the hyperbolic functions.

``*_wide`` functions take and return f64 and are good to about 2^-33: the result rounded to f32 is within 0.51 ulp of
the true one, and overflow and subnormals come out right by that rounding. They need no fma. ``*_f32`` functions compute
in f32 with fma.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from effc.compiler.codegen.cpu.mathlib import coefficients as table
from effc.compiler.codegen.cpu.mathlib.builder import Builder, Value

LOG2E = math.log2(math.e)
#: Adding it rounds to an integer, which then stands in the low bits of the sum.
ROUND_F64 = 1.5 * 2.0**52
ROUND_F32 = 1.5 * 2.0**23
#: ln 2 to 15 bits, so that its product with an exponent is exact, and the rest.
LN2_HIGH_F32 = float.fromhex("0x1.62e4p-1")
LN2_LOW_F32 = math.log(2) - LN2_HIGH_F32
#: Beyond them the result of a wide function rounds to 0, inf or (odd functions) its limit in f32.
WIDE_LOW, WIDE_HIGH = -160.0, 130.0


def _reduce(b: Builder, x: Value) -> tuple[Value, Value]:
    """x = n ln2 + r: (n's bits in the low part of an f64, exp(r) - 1)."""
    biased = b.fma(x, LOG2E, ROUND_F64)
    n = biased - ROUND_F64
    r = b.fma(n, -math.log(2), x)
    tail = b.polynomial(r, table.EXP_TAIL)
    return b.bits(biased), b.fma(r * r, tail, r)


def exp_wide(b: Builder, x: Value) -> Value:
    """For x in f32's range; NaN passes."""
    n, p = _reduce(b, b.clamp(x, WIDE_LOW, WIDE_HIGH))
    return b.from_bits(b.bits(p + 1.0) + (n << 52))


def exp2_wide(b: Builder, x: Value) -> Value:
    biased = b.clamp(x, WIDE_LOW, WIDE_HIGH) + ROUND_F64
    r = b.clamp(x, WIDE_LOW, WIDE_HIGH) - (biased - ROUND_F64)
    return b.from_bits(b.bits(b.polynomial(r, table.EXP2)) + (b.bits(biased) << 52))


def expm1_wide(b: Builder, x: Value) -> Value:
    n, p = _reduce(b, b.clamp(x, WIDE_LOW, WIDE_HIGH))
    scale = b.from_bits(b.bits(b.constant(1.0, "f64")) + (n << 52))
    return b.copysign(b.fma(p, scale, scale - 1.0), x)


def sinh_wide(b: Builder, x: Value) -> Value:
    e = expm1_wide(b, b.abs(x))
    return b.copysign((e + e / (e + 1.0)) * 0.5, x)


def cosh_wide(b: Builder, x: Value) -> Value:
    e = exp_wide(b, b.abs(x))
    return (e + 1.0 / e) * 0.5


def tanh_wide(b: Builder, x: Value) -> Value:
    e = expm1_wide(b, b.clamp(b.abs(x) * 2.0, 0.0, 60.0))
    return b.copysign(e / (e + 2.0), x)


def exp_f32(b: Builder, x: Value, low: float = -104.0) -> Value:
    """exp(x) for ``low`` <= x <= 89; where ``low`` is above -87 scaling by one factor does, but loses NaN."""
    biased = b.fma(x, LOG2E, ROUND_F32)
    n = biased - ROUND_F32
    r = b.fma(n, -LN2_HIGH_F32, x)
    r = b.fma(n, -LN2_LOW_F32, r)
    tail = b.polynomial(r, table.EXP_F32)
    p = b.fma(tail, r * r, r) + 1.0
    if low > -87.0:
        return b.from_bits(b.bits(p) + (b.bits(biased) << 23))
    return _scale(b, p, biased)


def exp_full_f32(b: Builder, x: Value) -> Value:
    return _above(b, x, -104.0, lambda v: exp_f32(b, b.select(v > 89.0, 89.0, v)))


def _above(b: Builder, x: Value, low: float, function: Callable[[Value], Value]) -> Value:
    """``function`` of x, and 0 below ``low``, where it would underflow: that takes Intel's cores some 150 cycles a vector, and masks of
    softmax are full of it.
    """
    below = x < low
    return b.select(below, 0.0, function(b.select(below, 0.0, x)))


def _scale(b: Builder, p: Value, biased: Value) -> Value:
    """p 2^i, where i + ``ROUND_F32`` is ``biased``, |i| <= 252, rounded once."""
    if b.has_registers:
        return b.scale(p, biased - ROUND_F32)
    i = b.bits(biased) - b.bits(b.constant(ROUND_F32, "f32"))
    half = i >> 1  # 2^i itself may be subnormal or overflow where the product does not
    one = b.bits(b.constant(1.0, "f32"))
    first = b.from_bits((half << 23) + one)
    second = b.from_bits(((i - half) << 23) + one)
    return p * first * second


def tanh_f32(b: Builder, x: Value) -> Value:
    return _tanh_pieces(b, x) if b.has_registers else _tanh_by_exp(b, x)


def _tanh_pieces(b: Builder, x: Value) -> Value:
    """A polynomial around one of 16 points, looked up in registers by exponent and two bits of mantissa of 1.65 |x| + 1."""
    magnitude = b.abs(x)
    m = b.select(magnitude > 9.02, 9.02, magnitude)  # where the last piece gives 1
    index = b.bits(b.fma(m, 1.65, 1.0)) >> 21
    centres, *pieces = table.TANH_PIECES_F32
    return b.copysign(b.piecewise(m - b.lookup(centres, index), index, pieces), x)


def _tanh_by_exp(b: Builder, x: Value) -> Value:
    """x + x³ P(x²) up to 0.6, 1 - 2/(exp(2x) + 1) beyond."""
    magnitude = b.abs(x)
    z = x * x
    small = b.fma(b.polynomial(z, table.TANH_F32) * z, x, x)
    e = exp_f32(b, b.clamp(magnitude + magnitude, 0.0, 20.0), low=0.0)
    large = 1.0 - 2.0 / (e + 1.0)
    return b.copysign(b.select(magnitude > 0.6, large, small), x)


def exp2_f32(b: Builder, x: Value) -> Value:
    def power(v: Value) -> Value:
        v = b.select(v > 129.0, 129.0, v)
        biased = v + ROUND_F32
        r = v - (biased - ROUND_F32)
        p = b.fma(b.polynomial(r, table.EXP2_F32[1:]), r, table.EXP2_F32[0])
        return _scale(b, p, biased)

    return _above(b, x, -150.0, power)
