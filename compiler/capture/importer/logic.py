"""Comparisons, logic and bits."""

from __future__ import annotations

import torch

from effc.compiler.capture.importer.body import Body
from effc.compiler.capture.importer.pointwise import ScalarFunction, pointwise
from effc.compiler.capture.importer.registry import Promotion
from effc.compiler.capture.importer.types import UNSIGNED, Scalar

_LOGIC = Promotion.ALWAYS_BOOL


def _relation(name: str) -> ScalarFunction:
    return lambda body, a, c: body.compare(name, a, c)


for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    pointwise(f"aten.{_name}.Tensor", f"aten.{_name}.Scalar", f"prims.{_name}.default", kind=_LOGIC)(_relation(_name))


def _bits(name: str) -> ScalarFunction:
    return lambda body, a, c: body.binary(f"arith.{name}i", a, c)


def _logical(name: str) -> ScalarFunction:
    return lambda body, a, c: body.binary(f"arith.{name}i", body.cast(a, torch.bool), body.cast(c, torch.bool))


for _name in ("and", "or", "xor"):
    pointwise(
        f"aten.bitwise_{_name}.Tensor", f"aten.bitwise_{_name}.Scalar", f"aten.bitwise_{_name}.Scalar_Tensor",
        f"prims.bitwise_{_name}.default",
    )(_bits(_name))  # fmt: skip
    pointwise(f"aten.logical_{_name}.default", kind=_LOGIC)(_logical(_name))


@pointwise("aten.bitwise_not.default", "prims.bitwise_not.default")
def _bitwise_not(body: Body, a: Scalar) -> Scalar:
    return body.binary("arith.xori", a, body.like(1 if a.dtype == torch.bool else -1, a))


@pointwise("aten.logical_not.default", kind=_LOGIC)
def _logical_not(body: Body, a: Scalar) -> Scalar:
    return body.invert(body.cast(a, torch.bool))


def _shift(body: Body, a: Scalar, c: Scalar, op: str, overflow: Scalar) -> Scalar:
    """A count outside [0, bits) gives ``overflow``, as torch's kernels do."""
    bits = body.like(torch.iinfo(a.dtype or torch.int64).bits, a)
    wrong = body.compare("ge", c, bits)
    if a.dtype not in UNSIGNED:
        wrong = body.binary("arith.ori", wrong, body.compare("lt", c, body.like(0, a)))
    return body.select(wrong, overflow, body.binary(op, a, body.select(wrong, body.like(0, a), c)))


@pointwise(
    "aten.bitwise_left_shift.Tensor", "aten.bitwise_left_shift.Tensor_Scalar", "aten.bitwise_left_shift.Scalar_Tensor",
    "prims.shift_left.default", "aten.__lshift__.Scalar", "aten.__lshift__.Tensor",
)  # fmt: skip
def _shift_left(body: Body, a: Scalar, c: Scalar) -> Scalar:
    return _shift(body, a, c, "arith.shli", body.like(0, a))


@pointwise(
    "aten.bitwise_right_shift.Tensor", "aten.bitwise_right_shift.Tensor_Scalar", "prims.shift_right_arithmetic.default",
    "aten.bitwise_right_shift.Scalar_Tensor", "aten.__rshift__.Scalar", "aten.__rshift__.Tensor",
)  # fmt: skip
def _shift_right(body: Body, a: Scalar, c: Scalar) -> Scalar:
    if a.dtype in UNSIGNED:
        return _shift(body, a, c, "arith.shrui", body.like(0, a))
    last = body.like(torch.iinfo(a.dtype or torch.int64).bits - 1, a)
    return _shift(body, a, c, "arith.shrsi", body.binary("arith.shrsi", a, last))
