"""Powers, roots and rounding. For ``*_wide`` see ``exponential``."""

from __future__ import annotations

import math

from effc.compiler.codegen.cpu.mathlib.builder import Builder, Value
from effc.compiler.codegen.cpu.mathlib.exponential import exp2_wide
from effc.compiler.codegen.cpu.mathlib.logarithm import log2_wide


def pow_wide(b: Builder, x: Value, y: Value) -> Value:
    """2^(y log2|x|) with C99's special cases (F.10.4.4)."""
    magnitude = exp2_wide(b, y * log2_wide(b, b.abs(x)))
    whole = b.unary("math.floor", y).equals(y)
    half = y * 0.5
    odd = b.op("arith.andi", [whole, b.unary("math.floor", half).compare("une", half)], "i1")
    signed = b.select(odd, b.copysign(magnitude, x), magnitude)
    nan = b.op("arith.andi", [whole.compare("eq", b.constant(0, "i1")), x < 0.0], "i1")
    nan = b.op("arith.andi", [nan, x > -math.inf], "i1")
    result = b.select(nan, math.nan, signed)
    result = b.select(y.equals(0.0), 1.0, result)
    result = b.select(x.equals(1.0), 1.0, result)
    both = b.op("arith.andi", [x.equals(-1.0), b.abs(y).equals(math.inf)], "i1")
    return b.select(both, 1.0, result)


def fpowi_wide(b: Builder, x: Value, n: Value) -> Value:
    """x to an i32."""
    return pow_wide(b, x, b.cast("arith.sitofp", n, "f64"))


def cbrt_wide(b: Builder, x: Value) -> Value:
    """2^(log2|x| / 3) and a step of Newton's, which makes cubes exact."""
    t = b.abs(x)
    root = exp2_wide(b, log2_wide(b, t) * (1.0 / 3.0))
    better = root - (root - t / (root * root)) * (1.0 / 3.0)
    return b.copysign(b.select(t.compare("one", 0.0), b.select(t < math.inf, better, t), t), x)


def rsqrt(b: Builder, x: Value) -> Value:
    """As torch's: the square root is rounded, then its inverse."""
    return 1.0 / b.sqrt(x)


def round_away(b: Builder, x: Value) -> Value:
    """Halves away from zero: the largest number below 1/2 is added, so that 0.49999997 stays below 1."""
    below_half = math.nextafter(0.5, 0.0) if x.element == "f64" else 0.5 - 2.0**-25
    return b.unary("math.trunc", x + b.copysign(b.constant(below_half, x.element), x))


def integer_power(b: Builder, x: Value, n: Value) -> Value:
    """x^n modulo the width; a negative n gives 1/x^-n as an integer: 0 except for x = 1 and -1 (and 0, taken as 0)."""
    bits = int(x.element[1:])
    result, base = b.constant(1, x.element), x
    for k in range(bits - 1):
        bit = (b.op("arith.shrui", [n, b.constant(k, x.element)], x.element) & 1).compare("ne", 0)
        result = b.select(bit, result * base, result)
        base = base * base
    unit = b.op("arith.ori", [x.equals(1), x.equals(-1)], "i1")
    inverse = b.select(unit, b.select((n & 1).equals(0), 1, x), 0)
    return b.select(n < 0, inverse, result)
