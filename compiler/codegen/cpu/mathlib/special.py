"""erf and erfc."""

from __future__ import annotations

from effc.compiler.codegen.cpu.mathlib import coefficients as table
from effc.compiler.codegen.cpu.mathlib.builder import Builder, Value
from effc.compiler.codegen.cpu.mathlib.exponential import exp_f32, exp_wide


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


def erf_f32(b: Builder, x: Value) -> Value:
    """x + x P(x²) up to 0.925, 1 - exp(-t + t Q(t)) beyond, with t = |x|."""
    magnitude = b.abs(x)
    small = b.copysign(b.fma(b.polynomial(x * x, table.ERF_F32), x, x), x)
    t = b.clamp(magnitude, 0.0, 4.0)
    exponent = b.fma(b.polynomial(t, table.ERF_EXPONENT_F32), t, -t)
    large = b.copysign(1.0 - exp_f32(b, exponent, low=-20.0), x)
    return b.select(magnitude > 0.925, large, small)
