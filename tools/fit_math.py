"""Prints the polynomials of ``effc.compiler.codegen.cpu.mathlib.coefficients`` (redirect it there).

Each is the interpolant at Chebyshev nodes, within a factor of about two of the minimax polynomial, computed with 60
digits by mpmath. Polynomials evaluated in f32 are least-squares fits, fitted again after each rounding: the lowest free
coefficient is rounded and fixed, and the later ones make up for it.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import mpmath as mp
import numpy as np
from numpy.typing import NDArray

mp.mp.dps = 60

Function = Callable[[mp.mpf], mp.mpf]
Array = NDArray[np.float64]


def chebyshev(f: Function, low: float, high: float, degree: int) -> list[mp.mpf]:
    """Monomial coefficients, lowest first, of the interpolant of ``f`` on [low, high]."""
    a, b = mp.mpf(low), mp.mpf(high)
    nodes = [(a + b) / 2 + (b - a) / 2 * mp.cos(mp.pi * (2 * k + 1) / (2 * degree + 2)) for k in range(degree + 1)]
    # Newton's divided differences, then expansion.
    table = [f(x) for x in nodes]
    for level in range(1, degree + 1):
        for k in range(degree, level - 1, -1):
            table[k] = (table[k] - table[k - 1]) / (nodes[k] - nodes[k - level])
    result = [table[degree]]
    for k in range(degree - 1, -1, -1):
        shifted = [mp.mpf(0), *result]
        for i, c in enumerate(result):
            shifted[i] -= nodes[k] * c
        shifted[0] += table[k]
        result = shifted
    return result


def in_f64(f: Function, low: float, high: float, degree: int) -> list[float]:
    return [float(c) for c in chebyshev(f, low, high, degree)]


def in_f32(f: Function, low: float, high: float, degree: int, weight: Function = lambda x: mp.mpf(1)) -> list[float]:
    """Least squares over Chebyshev-spaced points, refitted each time that a coefficient is rounded.

    ``weight``: the relative error that an error of 1 in ``f`` makes in the result; the worst of it is evened out first, by
    Lawson's reweighting (J. R. Rice, The Approximation of Functions II, 1969, section 13).
    """
    x = (low + high) / 2 + (high - low) / 2 * np.cos(np.pi * (np.arange(400) + 0.5) / 400)
    y = np.array([float(f(mp.mpf(v))) for v in x])
    matters = np.array([float(weight(mp.mpf(v))) for v in x])
    even = np.ones_like(x) if np.ptp(matters) == 0 else _lawson(x, y, matters, degree)
    return _rounding_each(x, y, matters * even, degree)


def _rounding_each(x: Array, y: Array, weights: Array, degree: int) -> list[float]:
    """The least-squares fit, each coefficient rounded to f32 before the next is fitted."""
    fixed: list[float] = []
    high = np.abs(x).max()
    for k in range(degree + 1):
        powers = (x[:, None] / high) ** np.arange(k, degree + 1)
        found = np.linalg.lstsq(powers * weights[:, None], y * weights, rcond=None)[0][0]
        c = float(np.float32(found / high**k))
        fixed.append(c)
        y = y - c * x**k
    return fixed


def _lawson(x: Array, y: Array, matters: Array, degree: int) -> Array:
    """Weights under which least squares is nearly the minimax fit."""
    powers = (x[:, None] / np.abs(x).max()) ** np.arange(degree + 1)
    weights = np.ones_like(x)
    for _ in range(300):
        scale = matters * np.sqrt(weights)
        error = np.abs(powers @ np.linalg.lstsq(powers * scale[:, None], y * scale, rcond=None)[0] - y) * matters
        weights = weights * (error / error.max() + 1e-4)
        weights /= weights.sum()
    return np.sqrt(weights)


def exp_tail(x: mp.mpf) -> mp.mpf:
    """(exp(x) - 1 - x) / x²"""
    return (mp.expm1(x) - x) / x**2 if abs(x) > mp.mpf(10) ** -12 else mp.mpf(1) / 2 + x / 6


def log_tail(x: mp.mpf) -> mp.mpf:
    """(log1p(x) - x + x²/2) / x³"""
    return (mp.log1p(x) - x + x**2 / 2) / x**3 if abs(x) > mp.mpf(10) ** -15 else mp.mpf(1) / 3


def of_square(odd: Function) -> Function:
    """z = x² ↦ odd(x) / x"""
    tiny = mp.mpf(10) ** -40
    return lambda z: odd(mp.sqrt(max(z, tiny))) / mp.sqrt(max(z, tiny))


def atan_tail(z: mp.mpf) -> mp.mpf:
    """(atan(x)/x - 1) / x² of z = x²; likewise below."""
    return (of_square(mp.atan)(z) - 1) / z if z > mp.mpf(10) ** -12 else -mp.mpf(1) / 3


def asin_tail(z: mp.mpf) -> mp.mpf:
    return (of_square(mp.asin)(z) - 1) / z if z > mp.mpf(10) ** -12 else mp.mpf(1) / 6


def sin_tail(z: mp.mpf) -> mp.mpf:
    return (of_square(mp.sin)(z) - 1) / z if z > mp.mpf(10) ** -12 else -mp.mpf(1) / 6 + z / 120


def cos_tail(z: mp.mpf) -> mp.mpf:
    """(cos(x) - 1 + x²/2) / x⁴"""
    return (mp.cos(mp.sqrt(z)) - 1 + z / 2) / z**2 if z > mp.mpf(10) ** -12 else mp.mpf(1) / 24 - z / 720


def tanh_tail(z: mp.mpf) -> mp.mpf:
    return (of_square(mp.tanh)(z) - 1) / z if z > mp.mpf(10) ** -12 else -mp.mpf(1) / 3


def atanh_tail(z: mp.mpf) -> mp.mpf:
    """(2 atanh(s)/s - 2) / s² of z = s²: log((1+s)/(1-s))."""
    return 2 * (of_square(mp.atanh)(z) - 1) / z if z > mp.mpf(10) ** -12 else mp.mpf(2) / 3 + 2 * z / 5


def erf_ratio(z: mp.mpf) -> mp.mpf:
    return of_square(mp.erf)(z)


def scaled_erfc(u: mp.mpf) -> mp.mpf:
    """exp(x²) erfc(x) (1 + 2x) of u = (x - 2)/(x + 2) (Shepherd and Laframboise, Math. Comp. 36, 1981)."""
    x = 2 * (1 + u) / (1 - u)
    return mp.exp(x**2) * mp.erfc(x) * (1 + 2 * x)


def erf_exponent(x: mp.mpf) -> mp.mpf:
    """log(1 - erf(x)) / x"""
    return mp.log(mp.erfc(x)) / x


def pieces(f: Function, centres: list[float], edges: list[float], degree: int) -> list[list[float]]:
    """For each coefficient, lowest first, its value in every polynomial of x - centre that is an odd f between two edges.

    Around 0 the lowest is 0, so that the relative error stays small.
    """
    found = []
    for centre, (low, high) in zip(centres, pairwise(edges), strict=True):
        x = np.linspace(0.01, 1, 300) * high
        if centre:
            x = (low + high) / 2 - centre + (high - low) / 2 * np.cos(np.pi * (np.arange(200) + 0.5) / 200)
        y = np.array([float(f(mp.mpf(v) + centre)) for v in x])
        found.append(
            _rounding_each(x, y, 1 / y, degree) if centre else [0.0, *_rounding_each(x, y / x, x / y, degree - 1)]
        )
    return [list(c) for c in zip(*found, strict=True)]


def erf_pieces() -> list[list[float]]:
    return pieces(mp.erf, [k * ERF_STEP for k in range(16)], [0, *((k + 0.5) * ERF_STEP for k in range(16))], 5)


def tanh_edges() -> list[float]:
    """Where ``TANH_SCALE`` x + 1 passes a quarter of an octave."""
    return [(2.0 ** (k // 4) * (1 + k % 4 / 4) - 1) / TANH_SCALE for k in range(17)]


def tanh_pieces() -> list[list[float]]:
    """The centres, then the coefficients, in the order of the four lowest bits of exponent and upper mantissa: from 4 octaves on."""
    edges = tanh_edges()
    centres = [0.0, *(round((low + high) * 32) / 64 for low, high in pairwise(edges[1:]))]
    rows = [centres, *pieces(mp.tanh, centres, [*edges[:-1], TANH_LIMIT], 5)]
    return [row[4:] + row[:4] for row in rows]


HALF_LN2 = 0.34658
#: 15.5 of them reach 3.93, from where erf rounds to 1; so few digits that multiples are exact.
ERF_STEP = 65 / 256
TANH_SCALE = 1.65
#: Just beyond 9.011, from where tanh rounds to 1.
TANH_LIMIT = 9.02
QUARTER_PI_SQUARED = 0.6169


def main() -> None:
    sqrt2 = 2**0.5
    tables: list[tuple[str, str, list[float]]] = [
        ("EXP_TAIL", "(exp(x) - 1 - x)/x², |x| <= ln2/2, to 2^-34", in_f64(exp_tail, -HALF_LN2, HALF_LN2, 5)),
        ("EXP2", "2^x, |x| <= 1/2, to 2^-36", in_f64(lambda x: mp.mpf(2) ** x, -0.5, 0.5, 7)),
        ("LOG_TAIL", "(log(1+x) - x + x²/2)/x³, 1+x in [sqrt(1/2), sqrt(2)], to 2^-40",
         in_f64(log_tail, sqrt2 / 2 - 1, sqrt2 - 1, 12)),
        ("ATAN_TAIL", "(atan(x)/x - 1)/x² of x², |x| <= 1", in_f64(atan_tail, 0, 1, 11)),
        ("ASIN_TAIL", "(asin(x)/x - 1)/x² of x², |x| <= 1/2", in_f64(asin_tail, 0, 0.25, 7)),
        ("SIN_TAIL", "(sin(x)/x - 1)/x² of x², |x| <= pi/4", in_f64(sin_tail, 0, QUARTER_PI_SQUARED, 3)),
        ("COS_TAIL", "(cos(x) - 1 + x²/2)/x⁴ of x², |x| <= pi/4", in_f64(cos_tail, 0, QUARTER_PI_SQUARED, 3)),
        ("ERF_RATIO", "erf(x)/x of x², |x| <= 1", in_f64(erf_ratio, 0, 1, 10)),
        ("ERFC_SCALED", "exp(x²) erfc(x) (1+2x) of (x-2)/(x+2), 0 <= x <= 11",
         in_f64(scaled_erfc, -1, 9 / 13, 13)),
        ("EXP_F32", "(exp(x) - 1 - x)/x² in f32", in_f32(exp_tail, -HALF_LN2, HALF_LN2, 4)),
        ("EXP2_F32", "2^x in f32, |x| <= 1/2", in_f32(lambda x: mp.mpf(2) ** x, -0.5, 0.5, 6)),
        ("EXP2_FRACTION_F32", "2^x in f32, 0 <= x <= 1, to 2^-22",
         in_f32(lambda x: mp.mpf(2) ** x, 0, 1, 5, weight=lambda x: mp.mpf(2) ** -x)),
        ("LOG_F32", "(log(1+x) - x + x²/2)/x³ in f32, 1+x in [2/3, 4/3]", in_f32(log_tail, -1 / 3, 1 / 3, 7)),
        ("TANH_F32", "(tanh(x)/x - 1)/x² of x² in f32, |x| <= 0.6", in_f32(tanh_tail, 0, 0.36, 4)),
        ("EXPM1_F32", "(exp(x) - 1 - x)/x² in f32, where 1 is taken off", in_f32(exp_tail, -HALF_LN2, HALF_LN2, 5)),
        ("ERF_EXPONENT_F32", "log(1 - erf(x))/x + 1 in f32, x <= 3.93",
         in_f32(lambda x: erf_exponent(x) + 1, 0, 3.93, 8, weight=lambda x: mp.erfc(x) * x / mp.erf(x))),
        ("SIN_F32", "(sin(x)/x - 1)/x² of x² in f32, |x| <= pi/4", in_f32(sin_tail, 0, QUARTER_PI_SQUARED, 2)),
        ("COS_F32", "(cos(x) - 1 + x²/2)/x⁴ of x² in f32, |x| <= pi/4", in_f32(cos_tail, 0, QUARTER_PI_SQUARED, 2)),
        ("EXP_F64", "(exp(x) - 1 - x)/x², |x| <= ln2/2, to 2^-60", in_f64(exp_tail, -HALF_LN2, HALF_LN2, 10)),
        ("LOG_F64", "(log((1+s)/(1-s))/s - 2)/s² of s², |s| <= 0.1716", in_f64(atanh_tail, 0, 0.02945, 6)),
        ("SIN_F64", "(sin(x)/x - 1)/x² of x², |x| <= pi/4", in_f64(sin_tail, 0, QUARTER_PI_SQUARED, 5)),
        ("COS_F64", "(cos(x) - 1 + x²/2)/x⁴ of x², |x| <= pi/4", in_f64(cos_tail, 0, QUARTER_PI_SQUARED, 5)),
        ("ATAN_F64", "(atan(x)/x - 1)/x² of x², |x| <= tan(pi/8)", in_f64(atan_tail, 0, 0.17158, 11)),
        ("ASIN_F64", "(asin(x)/x - 1)/x² of x², |x| <= 1/2", in_f64(asin_tail, 0, 0.25, 13)),
        ("ERF_F64", "erf(x)/x - 1 of x², |x| <= 1", in_f64(lambda z: erf_ratio(z) - 1, 0, 1, 16)),
        ("ERFC_F64", "exp(x²) erfc(x) (1+2x) of (x-2)/(x+2), 1 <= x <= 6", in_f64(scaled_erfc, -1 / 3, 0.5, 18)),
    ]  # fmt: skip
    piecewise = [
        ("ERF_PIECES_F32", "erf(x) in f32 as polynomials of x - k 65/256, k = 0 … 15", erf_pieces()),
        ("TANH_PIECES_F32", "tanh(x) in f32: centres, then the polynomials of what x is off its centre", tanh_pieces()),
    ]
    print('"""Polynomials, lowest coefficient first; written by ``tools/fit_math.py``, which says how."""')
    for name, what, values in tables:
        print(f"\n#: {what}")
        print(f"{name} = (")
        for value in values:
            print(f"    {value!r},")
        print(")")
    for name, what, rows in piecewise:
        print(f"\n#: {what}")
        print(f"{name} = (")
        for row in rows:
            print("    (")
            for value in row:
                print(f"        {value!r},")
            print("    ),")
        print(")")


if __name__ == "__main__":
    main()
