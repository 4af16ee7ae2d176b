"""Pointwise ops: arithmetic, comparisons, logic, rounding, selection, conversions.

Each is a function on scalars of the computation dtype, with torch's type promotion around it: 16-bit floats are computed in
float32 and rounded once per op, as eager does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import lru_cache
from typing import Any

import torch

from effc.compiler.capture.importer.body import Body
from effc.compiler.capture.importer.registry import Op, Promotion, lowers, promote
from effc.compiler.capture.importer.types import LOW_PRECISION, UNSIGNED, Scalar, Tensor, is_float
from effc.compiler.ir.errors import UnsupportedError

ScalarFunction = Callable[..., Scalar]


def number(body: Body, value: Any, dtype: torch.dtype, computation: torch.dtype) -> Scalar:
    """A Python or symbolic number, rounded to ``dtype`` and converted to ``computation``."""
    if isinstance(value, int | float):
        return body.number(_rounded(value, math.copysign(1, value), dtype), computation)
    return body.cast(body.number(value, dtype), computation)


@lru_cache(maxsize=1024, typed=True)
def _rounded(value: int | float, sign: float, dtype: torch.dtype) -> int | float | bool:
    """As a tensor holds it. ``sign`` tells zeros apart, which are equal."""
    held: int | float | bool = torch.tensor(value, dtype=dtype).item()
    return held


def apply(
    op: Op,
    function: ScalarFunction,
    args: Sequence[Any],
    kind: Any = Promotion.DEFAULT,
    unrounded: Collection[int] = (),
) -> Tensor:
    """``function(body, *scalars)`` at each point; tensors and numbers in ``args`` arrive in the promoted dtype.

    A number or a tensor of rank 0 beside 16-bit floats is first rounded to their dtype, as eager does, but not at the positions in
    ``unrounded``, where eager's kernel takes its value in float32.
    """
    computation, _ = promote(args, kind)
    if computation.is_complex:
        raise UnsupportedError("complex arithmetic")
    common = promote(args)[1]
    tensors = [a for a in args if isinstance(a, Tensor)]

    def operand(body: Body, position: int, read: Iterator[Scalar]) -> Scalar:
        arg = args[position]
        exact = position in unrounded and not (isinstance(arg, Tensor) and arg.rank)
        first = common if common in LOW_PRECISION and not exact else computation
        if isinstance(arg, Tensor):
            return body.cast(body.cast(next(read), first), computation)
        return number(body, arg, first, computation)

    def point(body: Body, *values: Scalar) -> Scalar:
        read = iter(values)
        scalars = [operand(body, i, read) for i in range(len(args))]
        return body.cast(function(body, *scalars), op.dtype)

    return op.b.pointwise(tensors, op.sizes, op.dtype, point)


def pointwise(
    *names: str, kind: Any = Promotion.DEFAULT, unrounded: Collection[int] = ()
) -> Callable[[ScalarFunction], ScalarFunction]:
    """Register a scalar function as the lowering of pointwise overloads."""

    def register(function: ScalarFunction) -> ScalarFunction:
        lowers(*names)(lambda op, *args: apply(op, function, args, kind, unrounded))
        return function

    return register


_FLOAT = Promotion.INT_TO_FLOAT


# -- arithmetic -------------------------------------------------------------------------------------------------------
def _scaled(op: Op, x: Any, y: Any, alpha: Any, sign: int) -> Tensor:
    """``x + sign * alpha * y``; with another ``alpha`` than 1 in one rounding, as eager's vector loop has it (``vec::fmadd``)."""

    def function(body: Body, a: Scalar, c: Scalar) -> Scalar:
        if alpha == 1:
            return _add(body, a, c) if sign > 0 else body.sub(a, c)
        if c.dtype == torch.bool:
            raise UnsupportedError("alpha with bool")
        scale = number(body, alpha, op.dtype, c.dtype or torch.int64)
        if is_float(c.dtype):
            return _fma(body, body.negate(c) if sign < 0 else c, scale, a)
        product = body.mul(c, scale)
        return body.add(a, product) if sign > 0 else body.sub(a, product)

    return apply(op, function, [x, y])


def _add(body: Body, a: Scalar, c: Scalar) -> Scalar:
    return body.binary("arith.ori", a, c) if a.dtype == torch.bool else body.add(a, c)


@lowers("aten.add.Tensor", "aten.add.Scalar", "prims.add.default")
def _add_lowering(op: Op, x: Any, y: Any, alpha: Any = 1) -> Tensor:
    return _scaled(op, x, y, alpha, 1)


@lowers("aten.sub.Tensor", "aten.sub.Scalar", "prims.sub.default")
def _sub_lowering(op: Op, x: Any, y: Any, alpha: Any = 1) -> Tensor:
    return _scaled(op, x, y, alpha, -1)


@lowers("aten.rsub.Tensor", "aten.rsub.Scalar")
def _rsub_lowering(op: Op, x: Any, y: Any, alpha: Any = 1) -> Tensor:
    return _scaled(op, y, x, alpha, -1)


@pointwise("aten.mul.Tensor", "aten.mul.Scalar", "prims.mul.default", unrounded=(1,))
def _mul(body: Body, a: Scalar, c: Scalar) -> Scalar:
    return body.binary("arith.andi", a, c) if a.dtype == torch.bool else body.mul(a, c)


@pointwise("aten.div.Tensor", "aten.div.Scalar", "aten.true_divide.Tensor", kind=_FLOAT, unrounded=(1,))
def true_div(body: Body, a: Scalar, c: Scalar) -> Scalar:
    return body.binary("arith.divf", a, c)


@pointwise("aten.neg.default", "prims.neg.default")
def _neg(body: Body, a: Scalar) -> Scalar:
    return body.negate(a)


@pointwise("aten.abs.default", "prims.abs.default")
def _abs(body: Body, a: Scalar) -> Scalar:
    if a.dtype in UNSIGNED:
        return a
    return body.unary("math.absf" if is_float(a.dtype) else "math.absi", a)


@pointwise("aten.sign.default", "prims.sign.default", "aten.sgn.default")
def _sign(body: Body, a: Scalar) -> Scalar:
    """-1, 0 or 1; NaN gives 0, as torch's (0 < x) - (x < 0)."""
    if a.dtype == torch.bool:
        return a
    dtype = a.dtype or torch.int64
    zero = body.like(0, a)
    positive = body.cast(body.compare("lt", zero, a), dtype)
    return body.sub(positive, body.cast(body.compare("lt", a, zero), dtype))


@lowers("aten.addcmul.default")
def _addcmul(op: Op, x: Any, y: Any, z: Any, value: Any = 1) -> Tensor:
    """The sum and the last product in one rounding, as compilers contract eager's loop."""

    def function(body: Body, a: Scalar, c: Scalar, d: Scalar) -> Scalar:
        scaled = body.mul(body.number(value, a.dtype or torch.int64), c)
        return _fma(body, scaled, d, a) if is_float(a.dtype) else body.add(a, body.mul(scaled, d))

    return apply(op, function, [x, y, z])


@lowers("aten.addcdiv.default")
def _addcdiv(op: Op, x: Any, y: Any, z: Any, value: Any = 1) -> Tensor:
    def function(body: Body, a: Scalar, c: Scalar, d: Scalar) -> Scalar:
        scale = body.number(value, a.dtype or torch.int64)
        return body.add(a, body.binary("arith.divf", body.mul(scale, c), d))

    return apply(op, function, [x, y, z])


@pointwise("aten.lerp.Scalar", "aten.lerp.Tensor", unrounded=(2,))
def _lerp(body: Body, start: Scalar, end: Scalar, weight: Scalar) -> Scalar:
    """From the nearer end, in one rounding after the difference, as eager (Lerp.h)."""
    near = body.compare("lt", body.unary("math.absf", weight), body.like(0.5, weight))
    share = body.select(near, weight, body.sub(weight, body.like(1, weight)))
    return _fma(body, share, body.sub(end, start), body.select(near, start, end))


@pointwise("prims.fma.default")
def _fma(body: Body, a: Scalar, c: Scalar, d: Scalar) -> Scalar:
    return Scalar(body.emit(f"math.fma {a.name}, {c.name}, {d.name} : {a.type}"), a.dtype)


# -- selection and limits -----------------------------------------------------------------------------------------------
@lowers(
    "aten.where.self", "aten.where.ScalarOther", "aten.where.ScalarSelf", "aten.where.Scalar", "prims.where.default"
)
def _where(op: Op, condition: Any, x: Any, y: Any) -> Tensor:
    tensors = [a for a in (condition, x, y) if isinstance(a, Tensor)]

    def point(body: Body, *values: Scalar) -> Scalar:
        read = iter(values)
        chosen = body.cast(next(read), torch.bool)
        a, c = (body.cast(next(read), op.dtype) if isinstance(v, Tensor) else body.number(v, op.dtype) for v in (x, y))
        return body.select(chosen, a, c)

    return op.b.pointwise(tensors, op.sizes, op.dtype, point)


@lowers("aten.masked_fill.Scalar", "aten.masked_fill.Tensor")
def _masked_fill(op: Op, x: Tensor, mask: Tensor, value: Any) -> Tensor:
    return _where(op, mask, value, x)  # type: ignore[no-any-return]


def extremum(kind: str) -> ScalarFunction:
    """``max`` or ``min``, NaN winning; of zeros of both signs the kernels take the second, as ATen's vector loop does.

    (Its scalar loop for the rest of a vector takes the first, so eager's sign depends on an element's place.)
    """

    def function(body: Body, a: Scalar, c: Scalar) -> Scalar:
        if is_float(a.dtype):
            return body.binary(f"arith.{kind}imumf", a, c)
        return body.binary(f"arith.{kind}{'ui' if a.dtype in UNSIGNED else 'si'}", a, c)

    return function


pointwise("aten.maximum.default", "prims.maximum.default", "aten.clamp_min.Tensor")(extremum("max"))
pointwise("aten.minimum.default", "prims.minimum.default", "aten.clamp_max.Tensor")(extremum("min"))


def limit(kind: str, bound_is_number: bool) -> Callable[[Body, Scalar, Scalar], Scalar]:
    """The first operand, or the bound where it lies beyond it; as in eager, -0.0 stays beside a bound of 0, and NaN wins on both sides.

    One comparison where the bound is known not to be NaN: with its selection it is one instruction of the CPU.
    """
    beyond = "gt" if kind == "max" else "lt"

    def function(body: Body, a: Scalar, bound: Scalar) -> Scalar:
        outside = body.compare(beyond, bound, a)
        if is_float(a.dtype) and not bound_is_number:
            outside = body.binary("arith.ori", outside, body.is_nan(bound))
        return body.select(outside, bound, a)

    return function


@lowers("aten.clamp_min.default")
def _clamp_min(op: Op, x: Tensor, low: Any) -> Tensor:
    return _bounded(op, x, low, None)


@lowers("aten.clamp_max.default")
def _clamp_max(op: Op, x: Tensor, high: Any) -> Tensor:
    return _bounded(op, x, None, high)


def number_extremum(kind: str) -> ScalarFunction:
    """C's ``fmax`` or ``fmin``: a number beats NaN; of zeros of both signs the first."""
    relation = "gt" if kind == "max" else "lt"

    def function(body: Body, a: Scalar, c: Scalar) -> Scalar:
        if not is_float(a.dtype):
            return extremum(kind)(body, a, c)
        second = body.binary("arith.ori", body.compare(relation, c, a), body.is_nan(a))
        return body.select(second, c, a)

    return function


pointwise("aten.fmax.default", "prims.fmax.default")(number_extremum("max"))
pointwise("aten.fmin.default", "prims.fmin.default")(number_extremum("min"))


@lowers("aten.clamp.default", "aten.clamp.Tensor")
def _clamp(op: Op, x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    return _bounded(op, x, low, high)


@lowers("aten.hardtanh.default")
def _hardtanh(op: Op, x: Tensor, low: Any = -1, high: Any = 1) -> Tensor:
    return _bounded(op, x, low, high)


def _bounded(op: Op, x: Tensor, low: Any, high: Any) -> Tensor:
    """NaN in ``x`` stays; where low > high the result is high. Tensors as bounds: eager takes ``maximum`` and ``minimum``."""
    bounds = [(kind, v) for kind, v in (("max", low), ("min", high)) if v is not None]

    def function(body: Body, a: Scalar, *limits: Scalar) -> Scalar:
        for (kind, v), bound in zip(bounds, limits, strict=True):
            number = isinstance(v, int | float) and not math.isnan(v)
            a = (extremum(kind) if isinstance(v, Tensor) else limit(kind, number))(body, a, bound)
        return a

    return apply(op, function, [x, *(v for _, v in bounds)])


@pointwise("aten.relu.default")
def _relu(body: Body, a: Scalar) -> Scalar:
    return limit("max", True)(body, a, body.like(0, a))


# -- conversions --------------------------------------------------------------------------------------------------------
_CONVERSIONS = ("prims.convert_element_type.default", "aten._to_copy.default", "aten.to.dtype")


@lowers(*_CONVERSIONS)
def _convert(op: Op, x: Tensor, *_: Any, **__: Any) -> Tensor:
    """A conversion that the model asks for, and not a decomposition, rounds (``effc.op = "round"``) though the kernel goes on in f32."""
    original = op.node.meta.get("original_aten")
    asked = original is None or str(original) in _CONVERSIONS
    return op.b.cast(x, op.dtype, 'effc.op = "round"' if asked and op.dtype == torch.bfloat16 else "")


@lowers("aten.copy.default", "aten.copy_.default", "prims.copy_to.default")
def _copy(op: Op, target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """The value that ``target`` has after the copy; as a region's result it is written there."""
    if source.sizes == target.sizes:
        return op.b.cast(source, target.dtype)
    return op.b.pointwise([source], target.sizes, target.dtype, lambda body, v: body.cast(v, target.dtype))
