"""asin, acos, atan, atan2: one set of formulas for two precisions (fdlibm's identities, e_asin.c, e_acos.c, e_atan2.c).

``WIDE`` works in f64 for a result that is right when rounded to f32; ``DOUBLE`` gives f64 to about 2 ulp, for which it
also adds what pi lacks as f64. Its splitting of arctangent's range at tan(pi/8) is Cephes' (S. L. Moshier, atan.c).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from effc.compiler.codegen.cpu.mathlib import coefficients as table
from effc.compiler.codegen.cpu.mathlib.builder import Builder, Value

#: pi/2 less its f64.
_HALF_PI_REST = 6.123233995736766e-17


@dataclass(frozen=True)
class Inverse:
    """The inverse functions on f64 lanes."""

    #: atan(t), 0 <= t <= 1.
    atan_of_unit: Callable[[Builder, Value], Value]
    #: asin(s) = s + s³ polynomial(s²), 0 <= s <= 1/2.
    asin_tail: Sequence[float]
    #: What is added to the f64 nearest pi/2, and twice to that of pi; 0 costs nothing.
    half_pi_rest: float

    def atan(self, b: Builder, x: Value) -> Value:
        t = b.abs(x)
        beyond = t > 1.0
        angle = self.atan_of_unit(b, b.select(beyond, 1.0 / t, t))
        return b.copysign(b.select(beyond, self._from_half_pi(angle), angle), x)

    def atan2(self, b: Builder, y: Value, x: Value) -> Value:
        tall, wide = b.abs(y), b.abs(x)
        beyond = tall > wide
        low, high = b.select(beyond, wide, tall), b.select(beyond, tall, wide)
        one = b.constant(1.0, "f64")
        ratio = b.select(low.equals(high), one, low / high)
        ratio = b.select(low.equals(0.0), low, ratio)
        angle = self.atan_of_unit(b, ratio)
        angle = b.select(beyond, self._from_half_pi(angle), angle)
        angle = b.select(b.copysign(one, x) < 0.0, self._from_pi(angle), angle)
        return b.copysign(b.select(x.compare("uno", y), math.nan, angle), y)

    def asin(self, b: Builder, x: Value) -> Value:
        beyond, part = self._asin_parts(b, x)
        return b.copysign(b.select(beyond, self._from_half_pi(part + part), part), x)

    def acos(self, b: Builder, x: Value) -> Value:
        beyond, part = self._asin_parts(b, x)
        twice = part + part
        far = b.select(x < 0.0, self._from_pi(twice), twice)
        return b.select(beyond, far, self._from_half_pi(b.copysign(part, x)))

    def _asin_parts(self, b: Builder, x: Value) -> tuple[Value, Value]:
        """(|x| > 1/2, asin(s)): s is |x|, or sqrt((1 - |x|)/2) where |x| > 1/2. NaN beyond 1."""
        t = b.abs(x)
        beyond = t > 0.5
        z = b.select(beyond, (1.0 - t) * 0.5, t * t)
        s = b.select(beyond, b.sqrt(z), t)
        return beyond, b.fma(b.polynomial(z, self.asin_tail) * z, s, s)

    def _from_half_pi(self, angle: Value) -> Value:
        return math.pi / 2 - (angle - self.half_pi_rest)

    def _from_pi(self, angle: Value) -> Value:
        return math.pi - (angle - 2 * self.half_pi_rest)


def _atan_of_unit_wide(b: Builder, t: Value) -> Value:
    z = t * t
    return b.fma(b.polynomial(z, table.ATAN_TAIL) * z, t, t)


def _atan_of_unit_double(b: Builder, t: Value) -> Value:
    beyond = t > math.tan(math.pi / 8)
    u = b.select(beyond, (t - 1.0) / (t + 1.0), t)
    z = u * u
    angle = b.fma(b.polynomial(z, table.ATAN_F64) * z, u, u)
    return b.select(beyond, math.pi / 4 + (angle + _HALF_PI_REST / 2), angle)


WIDE = Inverse(_atan_of_unit_wide, table.ASIN_TAIL, 0.0)
DOUBLE = Inverse(_atan_of_unit_double, table.ASIN_F64, _HALF_PI_REST)
