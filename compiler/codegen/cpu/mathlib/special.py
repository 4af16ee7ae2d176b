"""erf and erfc."""

from __future__ import annotations

import math

from effc.compiler.codegen.cpu.mathlib import coefficients as table
from effc.compiler.codegen.cpu.mathlib.builder import Builder, Value
from effc.compiler.codegen.cpu.mathlib.exponential import LOG2E, ROUND_F32, exp_wide


def _erfc_of_magnitude(b: Builder, magnitude: Value) -> Value:
    """erfc(t), t >= 0: exp(-t²) P((t-2)/(t+2)) / (1 + 2t)."""
    t = b.clamp(magnitude, 0.0, 11.0)
    u = (t - 2.0) / (t + 2.0)
    scaled = b.polynomial(u, table.ERFC_SCALED) / (t + t + 1.0)
    return exp_wide(b, -(t * t)) * scaled


def erfc_wide(b: Builder, x: Value) -> Value:
    """f64 for a result in f32, to about 2^-32."""
    tail = _erfc_of_magnitude(b, b.abs(x))
    return b.select(x < 0.0, 2.0 - tail, tail)


def erf_wide(b: Builder, x: Value) -> Value:
    """f64 for a result in f32, to about 2^-32."""
    magnitude = b.abs(x)
    small = x * b.polynomial(x * x, table.ERF_RATIO)
    large = b.copysign(1.0 - _erfc_of_magnitude(b, magnitude), x)
    return b.select(magnitude < 1.0, small, large)


#: Distance of the points around which ``ERF_PIECES_F32`` are (tools/fit_math.py).
_ERF_STEP = 65 / 256


def erf_f32(b: Builder, x: Value) -> Value:
    return _erf_pieces(b, x) if b.has_registers else _erf_by_exp(b, x)


def _erf_pieces(b: Builder, x: Value) -> Value:
    """A polynomial around the nearest of 16 points, its coefficients looked up in registers: half the instructions of the other."""
    magnitude = b.abs(x)
    m = b.select(magnitude > 3.93, 3.93, magnitude)  # where the last piece gives 1
    biased = b.fma(m, 1 / _ERF_STEP, ROUND_F32)
    t = b.fma(biased - ROUND_F32, -_ERF_STEP, m)
    return b.copysign(b.piecewise(t, b.bits(biased), table.ERF_PIECES_F32), x)


def _erf_by_exp(b: Builder, x: Value) -> Value:
    """-expm1(-t + t Q(t)), t = |x|, for every x: beyond 3.93 the result rounds to 1."""
    magnitude = b.abs(x)
    t = b.select(magnitude > 3.93, 3.93, magnitude)
    exponent = b.fma(b.polynomial(t, table.ERF_EXPONENT_F32), t, -t)
    biased = b.fma(exponent, LOG2E, ROUND_F32)
    n = biased - ROUND_F32
    r = b.fma(n, -math.log(2), exponent)  # one part of ln 2 does: where n is not 0, 1 is added
    p = b.fma(b.polynomial(r, table.EXPM1_F32), r * r, r)
    scale = b.from_bits((b.bits(biased) << 23) + b.bits(b.constant(1.0, "f32")))
    return b.copysign(b.fma(p, scale, scale - 1.0), x)
