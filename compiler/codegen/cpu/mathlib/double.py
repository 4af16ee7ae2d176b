"""f64 functions, to about 1 ulp (2 for expm1 and tanh), with and without fma.

The reductions and the order of the last additions are fdlibm's (Sun Microsystems, 1993: e_exp.c, e_log.c, s_log1p.c, k_sin.c,
k_cos.c, e_rem_pio2.c); the polynomials are fitted by ``tools/fit_math.py``.
"""

from __future__ import annotations

import math
import struct

from effc.compiler.codegen.cpu.mathlib import coefficients as table
from effc.compiler.codegen.cpu.mathlib.builder import Builder, Value
from effc.compiler.codegen.cpu.mathlib.exponential import LOG2E, ROUND_F64
from effc.compiler.codegen.cpu.mathlib.logarithm import ends, exponent_and_mantissa
from effc.compiler.codegen.cpu.mathlib.trigonometric import cosine, sine

#: ln 2 to 33 bits, so that its product with an exponent is exact, and the rest.
_LN2_HIGH = float.fromhex("0x1.62e42feep-1")
_LN2_LOW = float.fromhex("0x1.a39ef35793c76p-33")
#: pi/2 in three parts, the first two of 33 bits: products with a quotient below 2^20 are exact.
_HALF_PI = (float.fromhex("0x1.921fb544p+0"), float.fromhex("0x1.0b4611a6p-34"), float.fromhex("0x1.3198a2e037073p-69"))
#: Arguments up to which the reduction by pi/2 is exact.
FAST = 2.0**20


def _integer(value: float) -> int:
    return int(struct.unpack("<q", struct.pack("<d", value))[0])


def _power_of_two(b: Builder, n: Value) -> Value:
    return b.from_bits((n << 52) + _integer(1.0))


def _reduce(b: Builder, x: Value) -> tuple[Value, Value]:
    """x = n ln2 + r: (n as i64, exp(r) - 1)."""
    biased = b.fma(x, LOG2E, ROUND_F64)
    n = biased - ROUND_F64
    r = b.fma(n, -_LN2_LOW, b.fma(n, -_LN2_HIGH, x))
    tail = b.polynomial(r, table.EXP_F64)
    return quotient(b, biased), b.fma(r * r, tail, r)


def quotient(b: Builder, biased: Value) -> Value:
    """n as i64 from n + ``ROUND_F64``."""
    return b.bits(biased) - _integer(ROUND_F64)


def scaled(b: Builder, p: Value, n: Value) -> Value:
    """p 2^n, rounded once; n as i64."""
    # Halving n in two's complement without an arithmetic shift, which AVX2 lacks in 64 bits.
    half = b.op("arith.shrui", [n + 4096, b.constant(1, "i64")], "i64") - 2048
    return p * _power_of_two(b, half) * _power_of_two(b, n - half)


def exp(b: Builder, x: Value) -> Value:
    n, p = _reduce(b, b.clamp(x, -746.0, 710.0))
    return b.select(x.compare("uno", x), x, scaled(b, p + 1.0, n))


def quarter_of_expm1(b: Builder, x: Value) -> Value:
    """expm1(x)/4 for 0 <= x <= 710.6."""
    n, p = _reduce(b, x)
    quarter = _power_of_two(b, n - 2)
    return b.fma(p, quarter, quarter - 0.25)


def expm1(b: Builder, x: Value) -> Value:
    n, p = _reduce(b, b.clamp(x, -60.0, 710.0))
    half = _power_of_two(b, n - 1)  # 2^n itself overflows before the result does
    result = b.fma(p, half, half - 0.5) * 2.0
    return b.select(x.compare("uno", x), x, b.copysign(result, x))


def tanh(b: Builder, x: Value) -> Value:
    e = expm1(b, b.clamp(b.abs(x) * 2.0, 0.0, 60.0))
    return b.copysign(e / (e + 2.0), x)


def _log_of_parts(b: Builder, e: Value, m: Value, correction: Value | None) -> Value:
    f = m - 1.0
    half_square = f * f * 0.5
    s = f / (f + 2.0)
    z = s * s
    rest = b.polynomial(z, table.LOG_F64) * z
    low = e * _LN2_LOW if correction is None else b.fma(e, _LN2_LOW, correction)
    return e * _LN2_HIGH - ((half_square - b.fma(s, half_square + rest, low)) - f)


def _parts(b: Builder, x: Value) -> tuple[Value, Value]:
    """(e, m), x = m 2^e, for x > 0."""
    subnormal = x < 2.0**-1022
    e, m = exponent_and_mantissa(b, b.select(subnormal, x * 2.0**54, x))
    return e - b.select(subnormal, b.constant(54.0, "f64"), 0.0), m


def log(b: Builder, x: Value) -> Value:
    e, m = _parts(b, x)
    return ends(b, x, _log_of_parts(b, e, m, None))


def exponent_and_log(b: Builder, x: Value) -> tuple[Value, Value]:
    """(e, log(m)), x = m 2^e, for x > 0."""
    e, m = _parts(b, x)
    return e, _log_of_parts(b, b.constant(0.0, "f64"), m, None)


def log1p(b: Builder, x: Value) -> Value:
    w = x + 1.0
    back = w - x
    lost = (x - (w - back)) + (1.0 - back)
    e, m = exponent_and_mantissa(b, w)
    result = ends(b, w, _log_of_parts(b, e, m, lost / w))
    return b.select(x.equals(0.0), x, result)


def sin_cos(b: Builder, x: Value) -> tuple[Value, Value, Value]:
    """(bits of the quotient, sin, cos) of the remainder by pi/2, which is kept as a sum of two."""
    first, second, third = _HALF_PI
    biased = b.fma(x, 2.0 / math.pi, ROUND_F64)
    n = biased - ROUND_F64
    near = x - n * first
    product = n * second
    middle = near - product
    low = ((near - middle) - product) - n * third
    r = middle + low
    low = (middle - r) + low
    z = r * r
    half = z * 0.5
    sin = r + b.fma(b.polynomial(z, table.SIN_F64) * z, r, b.fma(-low, half, low))
    w = 1.0 - half
    cos = w + (((1.0 - w) - half) + b.fma(b.polynomial(z, table.COS_F64) * z, z, -(r * low)))
    return b.bits(biased), sin, cos


sin, cos = sine(sin_cos, 63, FAST), cosine(sin_cos, 63, FAST)


def erf(b: Builder, x: Value) -> Value:
    """x P(x²) up to 1, 1 - exp(-t²) Q((t-2)/(t+2)) / (1 + 2t) beyond."""
    t = b.clamp(b.abs(x), 0.0, 6.0)
    ratio = b.polynomial(x * x, table.ERF_F64)
    scaled = b.polynomial((t - 2.0) / (t + 2.0), table.ERFC_F64) / (t + t + 1.0)
    large = 1.0 - exp(b, -(t * t)) * scaled
    return b.copysign(b.select(t > 1.0, large, b.fma(x, ratio, x)), x)
