"""Quotients cut or floored, and remainders, with torch's rules for signs, zero and overflow."""

from __future__ import annotations

from typing import Any

from effc.compiler.capture.importer.body import Body
from effc.compiler.capture.importer.pointwise import apply, pointwise, true_div
from effc.compiler.capture.importer.registry import Op, Promotion, lowers
from effc.compiler.capture.importer.types import UNSIGNED, Scalar, Tensor, is_float
from effc.compiler.ir.spec import DIVISION_BY_ZERO


@lowers("prims.div.default")
def _prims_div(op: Op, x: Any, y: Any) -> Tensor:
    return apply(op, lambda body, a, c: true_div(body, a, c) if is_float(a.dtype) else trunc_div(body, a, c), [x, y])


@lowers("aten.div.Tensor_mode", "aten.div.Scalar_mode", "aten.floor_divide.default", "aten.floor_divide.Scalar")
def _div_mode(op: Op, x: Any, y: Any, rounding_mode: str | None = "floor") -> Tensor:
    if rounding_mode is None:
        return apply(op, true_div, [x, y], Promotion.INT_TO_FLOAT, unrounded=(1,))
    return apply(op, trunc_div if rounding_mode == "trunc" else floor_div, [x, y], unrounded=(1,))


def trunc_div(body: Body, a: Scalar, c: Scalar) -> Scalar:
    """The quotient cut towards zero. An integer division by zero gives 0 (eager raises)."""
    if is_float(a.dtype):
        return body.unary("math.trunc", body.binary("arith.divf", a, c))
    return _int_div(body, "arith.divui" if a.dtype in UNSIGNED else "arith.divsi", a, c)


def floor_div(body: Body, a: Scalar, c: Scalar) -> Scalar:
    """The floored quotient; for floats by Python's rule, from the remainder (c10's div_floor_floating)."""
    if not is_float(a.dtype):
        if a.dtype in UNSIGNED:
            return _int_div(body, "arith.divui", a, c)
        return _int_div(body, "arith.floordivsi", a, c)
    zero, one = body.like(0, a), body.like(1, a)
    rest = body.binary("arith.remf", a, c)
    quotient = body.binary("arith.divf", body.sub(a, rest), c)
    opposite = body.binary("arith.xori", body.compare("lt", c, zero), body.compare("lt", rest, zero))
    adjust = body.binary("arith.andi", body.compare("ne", rest, zero), opposite)
    quotient = body.select(adjust, body.sub(quotient, one), quotient)
    floored = body.unary("math.floor", quotient)
    above = body.compare("gt", body.sub(quotient, floored), body.like(0.5, a))
    floored = body.select(above, body.add(floored, one), floored)
    plain = body.binary("arith.divf", a, c)
    signed_zero = body.binary("math.copysign", zero, plain)
    result = body.select(body.compare("ne", quotient, zero), floored, signed_zero)
    return body.select(body.compare("eq", c, zero), plain, result)


def _int_div(body: Body, name: str, a: Scalar, c: Scalar) -> Scalar:
    if body.known(c) not in (None, 0, -1):
        return body.binary(name, a, c)
    one = body.like(1, a)
    safe = _nonzero(body, c)
    if a.dtype in UNSIGNED:
        return body.binary(name, a, safe)
    by_minus_one = body.compare("eq", c, body.like(-1, a))  # the least integer over -1 overflows; torch wraps
    quotient = body.binary(name, a, body.select(by_minus_one, one, safe))
    return body.select(by_minus_one, body.negate(a), quotient)


@pointwise("aten.fmod.Tensor", "aten.fmod.Scalar", "prims.fmod.default")
def _fmod(body: Body, a: Scalar, c: Scalar) -> Scalar:
    if is_float(a.dtype):
        return body.binary("arith.remf", a, c)
    return _int_rem(body, a, c)


@pointwise("aten.remainder.Tensor", "aten.remainder.Scalar", "aten.remainder.Scalar_Tensor", "prims.remainder.default")
def _remainder(body: Body, a: Scalar, c: Scalar) -> Scalar:
    """The remainder with the divisor's sign."""
    zero = body.like(0, a)
    rest = body.binary("arith.remf", a, c) if is_float(a.dtype) else _int_rem(body, a, c)
    if a.dtype in UNSIGNED:
        return rest
    opposite = body.binary("arith.xori", body.compare("lt", c, zero), body.compare("lt", rest, zero))
    adjust = body.binary("arith.andi", body.compare("ne", rest, zero), opposite)
    return body.select(adjust, body.add(rest, c), rest)


def _nonzero(body: Body, c: Scalar) -> Scalar:
    """The divisor, 1 in place of 0; division by zero is reported after the call."""
    by_zero = body.compare("eq", c, body.like(0, c))
    body.check(body.invert(by_zero), DIVISION_BY_ZERO)
    return body.select(by_zero, body.like(1, c), c)


def _int_rem(body: Body, a: Scalar, c: Scalar) -> Scalar:
    name = "arith.remui" if a.dtype in UNSIGNED else "arith.remsi"
    if body.known(c) not in (None, 0, -1):
        return body.binary(name, a, c)
    safe = _nonzero(body, c)
    if a.dtype in UNSIGNED:
        return body.binary(name, a, safe)
    safe = body.select(body.compare("eq", c, body.like(-1, a)), body.like(1, a), safe)
    return body.binary(name, a, safe)
