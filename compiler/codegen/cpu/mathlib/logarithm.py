"""log, log2, log10, log1p and the inverse hyperbolic functions. For ``*_wide`` see ``exponential``."""

from __future__ import annotations

import math
import struct

from effc.compiler.codegen.cpu.mathlib import coefficients as table
from effc.compiler.codegen.cpu.mathlib.builder import Builder, Value

#: Bits of sqrt(1/2) as f64: mantissas are taken in [sqrt(1/2), sqrt(2)), where log(x) keeps its sign and exponent 0.
_SQRT_HALF = struct.unpack("<q", struct.pack("<d", math.sqrt(0.5)))[0]
#: Bits of 2/3 as f32: mantissas in [2/3, 4/3).
_TWO_THIRDS = struct.unpack("<i", struct.pack("<f", 2 / 3))[0]
_ROUND_BITS = struct.unpack("<q", struct.pack("<d", 1.5 * 2.0**52))[0]


def exponent_and_mantissa(b: Builder, x: Value) -> tuple[Value, Value]:
    """(e, m) where x = m 2^e, m in [sqrt(1/2), sqrt(2)), for x normal and positive."""
    bits = b.bits(x)
    shifted = bits - _SQRT_HALF
    # An arithmetic shift of i64 and its conversion to f64 need AVX-512: the biased exponent goes through the mantissa.
    exponent = b.op("arith.shrui", [shifted + (2048 << 52 >> 1), b.constant(52, "i64")], "i64")
    e = b.from_bits(exponent + (_ROUND_BITS - 1024)) - 1.5 * 2.0**52
    return e, b.from_bits(bits - ((exponent - 1024) << 52))


def _split(b: Builder, x: Value) -> tuple[Value, Value]:
    """(e, log(m)) of ``exponent_and_mantissa``."""
    e, m = exponent_and_mantissa(b, x)
    f = m - 1.0
    z = f * f
    tail = b.fma(b.polynomial(f, table.LOG_TAIL), f, -0.5)
    return e, b.fma(tail, z, f)


def ends(b: Builder, x: Value, result: Value) -> Value:
    """-inf at 0, NaN below, inf and NaN as they are."""
    result = b.select(x < math.inf, result, x)
    result = b.select(x.equals(0.0), -math.inf, result)
    return b.select(x < 0.0, math.nan, result)


def log_wide(b: Builder, x: Value) -> Value:
    e, m = _split(b, x)
    return ends(b, x, b.fma(e, math.log(2), m))


def log2_wide(b: Builder, x: Value) -> Value:
    e, m = _split(b, x)
    return ends(b, x, b.fma(m, math.log2(math.e), e))


def log10_wide(b: Builder, x: Value) -> Value:
    e, m = _split(b, x)
    return ends(b, x, b.fma(e, math.log10(2), m * math.log10(math.e)))


def log1p_wide(b: Builder, x: Value) -> Value:
    """log(1 + x) of the rounded sum, and what the rounding lost, which only matters where the sum is close to 1."""
    w = x + 1.0
    return log_wide(b, w) + b.select(w < math.inf, x - (w - 1.0), 0.0)


def log1p_signed_wide(b: Builder, x: Value) -> Value:
    """With log1p(-0) = -0."""
    return b.select(x.equals(0.0), x, log1p_wide(b, x))


def asinh_wide(b: Builder, x: Value) -> Value:
    t = b.abs(x)
    square = t * t
    result = log1p_wide(b, t + square / (b.sqrt(square + 1.0) + 1.0))
    return b.copysign(b.select(t < math.inf, result, t), x)


def acosh_wide(b: Builder, x: Value) -> Value:
    t = x - 1.0
    return b.select(x < 1.0, math.nan, log1p_wide(b, t + b.sqrt(b.fma(t, t, t + t))))


def atanh_wide(b: Builder, x: Value) -> Value:
    t = b.abs(x)
    return b.copysign(log1p_wide(b, (t + t) / (1.0 - t)) * 0.5, x)


def _log1p_of_part(b: Builder, f: Value) -> Value:
    """log(1 + f), 1 + f in [2/3, 4/3)."""
    tail = b.fma(b.polynomial(f, table.LOG_F32), f, -0.5)
    return b.fma(tail, f * f, f)


def log_f32(b: Builder, x: Value) -> Value:
    subnormal = x < 2.0**-126
    scaled = b.select(subnormal, x * 2.0**23, x)
    bits = b.bits(scaled)
    exponent = (bits - _TWO_THIRDS) >> 23
    f = b.from_bits(bits - (exponent << 23)) - 1.0
    e = b.cast("arith.sitofp", exponent, "f32") + b.select(subnormal, b.constant(-23.0, "f32"), 0.0)
    return ends(b, x, b.fma(e, math.log(2), _log1p_of_part(b, f)))


def log1p_f32(b: Builder, x: Value) -> Value:
    """The exponent is taken from the rounded 1 + x = m 2^e, but m - 1 = x 2^-e + (2^-e - 1) from x itself."""
    exponent = (b.bits(x + 1.0) - _TWO_THIRDS) >> 23
    four = b.bits(b.constant(4.0, "f32"))  # 2^-e alone would be subnormal for the largest x
    scale = b.from_bits(four - (exponent << 23))
    f = b.fma(x * scale, 0.25, b.fma(scale, 0.25, -1.0))
    result = b.fma(b.cast("arith.sitofp", exponent, "f32"), math.log(2), _log1p_of_part(b, f))
    result = b.select(x < math.inf, result, x)
    result = b.select(x.equals(-1.0), -math.inf, result)
    result = b.select(x < -1.0, math.nan, result)
    return b.select(x.equals(0.0), x, result)
