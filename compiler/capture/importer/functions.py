"""Mathematical functions of one or two floats: exp, erf, pow, rounding, classification, and what libm gives."""

from __future__ import annotations

import math
from typing import Any

import torch

from effc.compiler.capture.importer.body import Body
from effc.compiler.capture.importer.pointwise import ScalarFunction, apply, pointwise
from effc.compiler.capture.importer.registry import Op, Promotion, lowers
from effc.compiler.capture.importer.shapes import extract_slice, wrap
from effc.compiler.capture.importer.types import UNSIGNED, Scalar, Tensor, is_float
from effc.compiler.ir.errors import UnsupportedError

_FLOAT = Promotion.INT_TO_FLOAT

#: ATen name -> op of MLIR's ``math`` dialect, for functions of one float.
_MATH = {
    "acos": "acos", "acosh": "acosh", "asin": "asin", "asinh": "asinh", "atan": "atan", "atanh": "atanh", "cos": "cos",
    "cosh": "cosh", "erf": "erf", "erfc": "erfc", "exp": "exp", "exp2": "exp2", "expm1": "expm1", "log": "log",
    "log10": "log10", "log1p": "log1p", "log2": "log2", "sin": "sin", "sinh": "sinh", "sqrt": "sqrt", "tan": "tan",
    "tanh": "tanh",
}  # fmt: skip


def _unary(name: str) -> ScalarFunction:
    return lambda body, a: body.unary(f"math.{name}", a)


for _aten, _mlir in _MATH.items():
    pointwise(f"aten.{_aten}.default", f"prims.{_aten}.default", kind=_FLOAT)(_unary(_mlir))


@pointwise("aten.lgamma.default", "prims.lgamma.default", kind=_FLOAT)
def _lgamma(body: Body, a: Scalar) -> Scalar:
    return body.libm("lgamma", a)


@pointwise("aten.rsqrt.default", "prims.rsqrt.default", kind=_FLOAT)
def _rsqrt(body: Body, a: Scalar) -> Scalar:
    """1 / sqrt(x), correctly rounded twice as eager's."""
    return body.binary("arith.divf", body.like(1, a), body.unary("math.sqrt", a))


@pointwise("aten.reciprocal.default", "prims.reciprocal.default", kind=_FLOAT)
def _reciprocal(body: Body, a: Scalar) -> Scalar:
    return body.binary("arith.divf", body.like(1, a), a)


@pointwise("aten.sigmoid.default", kind=_FLOAT)
def sigmoid(body: Body, a: Scalar) -> Scalar:
    one = body.like(1, a)
    return body.binary("arith.divf", one, body.add(one, body.unary("math.exp", body.negate(a))))


@pointwise("aten.silu.default")
def _silu(body: Body, a: Scalar) -> Scalar:
    one = body.like(1, a)
    return body.binary("arith.divf", a, body.add(one, body.unary("math.exp", body.negate(a))))


@lowers("aten.gelu.default")
def _gelu(op: Op, x: Tensor, approximate: str = "none") -> Tensor:
    def function(body: Body, a: Scalar) -> Scalar:
        half, one = body.like(0.5, a), body.like(1, a)
        if approximate == "none":
            inner = body.unary("math.erf", body.mul(a, body.like(math.sqrt(0.5), a)))
        else:
            cube = body.mul(body.mul(a, a), a)
            poly = body.add(a, body.mul(body.like(0.044715, a), cube))
            inner = body.unary("math.tanh", body.mul(body.like(math.sqrt(2 / math.pi), a), poly))
        return body.mul(body.mul(half, a), body.add(one, inner))

    return apply(op, function, [x])


@pointwise("aten.atan2.default", "prims.atan2.default", kind=_FLOAT)
def _atan2(body: Body, a: Scalar, c: Scalar) -> Scalar:
    return body.binary("math.atan2", a, c)


@pointwise("aten.copysign.Tensor", "aten.copysign.Scalar", kind=_FLOAT)
def _copysign(body: Body, a: Scalar, c: Scalar) -> Scalar:
    return body.binary("math.copysign", a, c)


@pointwise("aten.hypot.default", "prims.hypot.default")
def _hypot(body: Body, a: Scalar, c: Scalar) -> Scalar:
    return body.libm("hypot", a, c)


@lowers("aten.nextafter.default", "prims.nextafter.default")
def _nextafter(op: Op, x: Any, y: Any) -> Tensor:
    if op.dtype in (torch.bfloat16, torch.float16):
        raise UnsupportedError("nextafter of a 16-bit float")
    return apply(op, lambda body, a, c: body.libm("nextafter", a, c), [x, y])


# -- rounding and classification ------------------------------------------------------------------------------------------
def _rounding(name: str) -> ScalarFunction:
    return lambda body, a: body.unary(f"math.{name}", a) if is_float(a.dtype) else a


for _aten, _mlir in {"ceil": "ceil", "floor": "floor", "trunc": "trunc", "round": "roundeven"}.items():
    pointwise(f"aten.{_aten}.default", f"prims.{_aten}.default")(_rounding(_mlir))


@lowers("aten.round.decimals")
def _round_decimals(op: Op, x: Tensor, decimals: int = 0) -> Tensor:
    def function(body: Body, a: Scalar) -> Scalar:
        if not is_float(a.dtype):
            return a
        scale = body.like(float(10 ** abs(decimals)), a)
        there, back = ("arith.mulf", "arith.divf") if decimals >= 0 else ("arith.divf", "arith.mulf")
        return body.binary(back, body.unary("math.roundeven", body.binary(there, a, scale)), scale)

    return apply(op, function, [x])


@pointwise("aten.isnan.default", kind=Promotion.ALWAYS_BOOL)
def _isnan(body: Body, a: Scalar) -> Scalar:
    return body.is_nan(a) if is_float(a.dtype) else body.constant(False, torch.bool)


@pointwise("aten.isinf.default", kind=Promotion.ALWAYS_BOOL)
def _isinf(body: Body, a: Scalar) -> Scalar:
    if not is_float(a.dtype):
        return body.constant(False, torch.bool)
    return body.compare("eq", body.unary("math.absf", a), body.like(math.inf, a))


@pointwise("prims.isfinite.default", "aten.isfinite.default", kind=Promotion.ALWAYS_BOOL)
def _isfinite(body: Body, a: Scalar) -> Scalar:
    if not is_float(a.dtype):
        return body.constant(True, torch.bool)
    return body.compare("lt", body.unary("math.absf", a), body.like(math.inf, a))


@pointwise("aten.signbit.default", "prims.signbit.default", kind=Promotion.ALWAYS_BOOL)
def _signbit(body: Body, a: Scalar) -> Scalar:
    if not is_float(a.dtype):
        return body.compare("lt", a, body.like(0, a))
    sign = body.binary("math.copysign", body.like(1, a), a)
    return body.compare("lt", sign, body.like(0, a))


# -- powers -----------------------------------------------------------------------------------------------------------------
@lowers("aten.pow.Tensor_Scalar")
def _pow_scalar(op: Op, x: Tensor, exponent: Any) -> Tensor:
    def function(body: Body, a: Scalar, c: Scalar) -> Scalar:
        if not is_float(a.dtype):
            return _integer_power(body, a, exponent)
        return _special_power(body, a, exponent) or body.binary("math.powf", a, c)

    return apply(op, function, [x, exponent])


def _special_power(body: Body, a: Scalar, exponent: Any) -> Scalar | None:
    """Exponents that eager's kernel computes without pow (pow_tensor_scalar_optimized_kernel)."""
    one = body.like(1, a)
    match exponent:
        case 0:
            return one
        case 1:
            return a
        case 2:
            return body.mul(a, a)
        case 3:
            return body.mul(body.mul(a, a), a)
        case 0.5:
            return body.unary("math.sqrt", a)
        case -0.5:
            return body.binary("arith.divf", one, body.unary("math.sqrt", a))
        case -1:
            return body.binary("arith.divf", one, a)
        case -2:
            return body.binary("arith.divf", one, body.mul(a, a))
    return None


def _integer_power(body: Body, a: Scalar, exponent: Any) -> Scalar:
    """An integer to a constant power >= 0 by repeated squaring; products wrap."""
    if not isinstance(exponent, int) or exponent < 0 or a.dtype == torch.bool:
        raise UnsupportedError(f"an integer to the power {exponent}")
    result: Scalar | None = None
    square = a
    while exponent:
        if exponent & 1:
            result = square if result is None else body.mul(result, square)
        exponent >>= 1
        if exponent:
            square = body.mul(square, square)
    return body.like(1, a) if result is None else result


@lowers("aten.pow.Tensor_Tensor", "aten.pow.Scalar", "prims.pow.default")
def _pow(op: Op, x: Any, exponent: Any) -> Tensor:
    def function(body: Body, a: Scalar, c: Scalar) -> Scalar:
        if is_float(a.dtype):
            return body.binary("math.powf", a, c)
        if a.dtype in UNSIGNED:
            raise UnsupportedError("a power of unsigned integers")
        return _tensor_integer_power(body, a, c)

    return apply(op, function, [x, exponent])


def _tensor_integer_power(body: Body, a: Scalar, c: Scalar) -> Scalar:
    """Below zero only 1 and -1 have an integer power (c10's powi); the loop over the exponent's bits is unrolled."""
    zero, one = body.like(0, a), body.like(1, a)
    bits = torch.iinfo(a.dtype or torch.int64).bits
    result, square = one, a
    for position in range(bits - 1):
        bit = body.binary("arith.andi", c, body.like(1 << position, a))
        result = body.select(body.compare("ne", bit, zero), body.mul(result, square), result)
        square = body.mul(square, square)
    odd = body.compare("ne", body.binary("arith.andi", c, one), zero)
    minus_one = body.like(-1, a)
    inverse = body.select(
        body.compare("eq", a, one),
        one,
        body.select(body.compare("eq", a, minus_one), body.select(odd, minus_one, one), zero),
    )
    return body.select(body.compare("lt", c, zero), inverse, result)


# -- activations that the decompositions leave whole ---------------------------------------------------------------------
@lowers("aten.softplus.default")
def _softplus(op: Op, x: Tensor, beta: Any = 1, threshold: Any = 20) -> Tensor:
    def function(body: Body, a: Scalar) -> Scalar:
        scaled = body.mul(a, body.like(beta, a))
        soft = body.binary("arith.divf", body.unary("math.log1p", body.unary("math.exp", scaled)), body.like(beta, a))
        return body.select(body.compare("gt", scaled, body.like(threshold, a)), a, soft)

    return apply(op, function, [x])


@lowers("aten.glu.default")
def _glu(op: Op, x: Tensor, dim: int = -1) -> Tensor:
    dim = wrap(dim, x.rank)
    half = op.sizes[dim]
    parts = [extract_slice(op.b, x, dim, start, half) for start in (0, half)]
    return apply(op, lambda body, a, c: body.mul(a, sigmoid(body, c)), parts)


@lowers("aten.leaky_relu.default")
def _leaky_relu(op: Op, x: Tensor, slope: Any = 0.01) -> Tensor:
    def function(body: Body, a: Scalar) -> Scalar:
        return body.select(body.compare("gt", a, body.like(0, a)), a, body.mul(a, body.like(slope, a)))

    return apply(op, function, [x])
