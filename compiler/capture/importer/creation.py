"""Tensors from nothing: constants, ranges, the identity matrix."""

from __future__ import annotations

from typing import Any

import torch

from effc.compiler.capture.importer.body import Body
from effc.compiler.capture.importer.builder import identity
from effc.compiler.capture.importer.registry import Op, lowers
from effc.compiler.capture.importer.types import Quotient, Scalar, Size, Tensor, is_empty, is_float
from effc.compiler.ir.expr import Expr


def _full(op: Op, value: Any) -> Tensor:
    if isinstance(value, (Expr, Quotient)):
        return op.b.pointwise([], op.sizes, op.dtype, lambda body: body.number(value, op.dtype))
    if not is_float(op.dtype) and op.dtype != torch.bool:
        value = int(value)
    return op.b.fill(value, op.dtype, op.sizes)


@lowers("aten.full.default", "aten.full_like.default", "aten.new_full.default")
def _full_lowering(op: Op, like: Any, *values: Any, fill_value: Any = 0, **_: Any) -> Tensor:
    return _full(op, values[-1] if values else fill_value)


@lowers("aten.scalar_tensor.default", "prims.scalar_tensor.default")
def _scalar_tensor(op: Op, value: Any, **_: Any) -> Tensor:
    return _full(op, value)


@lowers(
    "aten.zeros.default", "aten.zeros_like.default", "aten.new_zeros.default", "aten.empty.memory_format",
    "aten.empty_like.default", "aten.new_empty.default", "aten.empty_strided.default", "aten.new_empty_strided.default",
    "prims.empty_strided.default", "aten.empty_permuted.default", "prims.empty_permuted.default",
)  # fmt: skip
def _zeros(op: Op, *_: Any, **__: Any) -> Tensor:
    """Zeros; also for ``empty``, whose content torch leaves open."""
    return _full(op, 0)


@lowers("aten.ones.default", "aten.ones_like.default", "aten.new_ones.default")
def _ones(op: Op, *_: Any, **__: Any) -> Tensor:
    return _full(op, 1)


@lowers("aten.zero.default", "aten.fill.Scalar", "aten.fill_.Scalar")
def _fill(op: Op, x: Tensor, value: Any = 0) -> Tensor:
    return _full(op, value)


@lowers("aten.fill.Tensor")
def _fill_tensor(op: Op, x: Tensor, value: Tensor) -> Tensor:
    return op.b.pointwise([value], op.sizes, op.dtype, lambda body, v: body.cast(v, op.dtype))


@lowers("prims.iota.default")
def _iota(op: Op, length: Size, *, start: Size = 0, step: Size = 1, **_: Any) -> Tensor:
    return _range(op, start, step)


@lowers("aten.arange.start_step")
def _arange(op: Op, start: Any = 0, end: Any = None, step: Any = 1, **_: Any) -> Tensor:
    return _range(op, start, step)


@lowers("aten.arange.start")
def _arange_start(op: Op, start: Any, end: Any, **_: Any) -> Tensor:
    return _range(op, start, 1)


@lowers("aten.arange.default")
def _arange_end(op: Op, end: Any, **_: Any) -> Tensor:
    return _range(op, 0, 1)


def _range(op: Op, start: Any, step: Any) -> Tensor:
    """``start + i * step``, computed in i64, or in float64 for float ranges (float32 ones are rounded from it)."""
    whole = not is_float(op.dtype) and not any(isinstance(v, float) for v in (start, step))
    dtype = torch.int64 if whole else torch.float64

    def point(body: Body) -> Scalar:
        at = body.cast(body.loop_index(0), dtype)
        if step != 1:
            at = body.mul(at, body.number(step, dtype))
        if start != 0:
            at = body.add(body.number(start, dtype), at)
        return body.cast(at, op.dtype)

    return op.b.pointwise([], op.sizes, op.dtype, point)


@lowers("aten.eye.default", "aten.eye.m")
def _eye(op: Op, *_: Any, **__: Any) -> Tensor:
    def point(body: Body) -> Scalar:
        equal = body.compare("eq", body.loop_index(0), body.loop_index(1))
        return body.cast(equal, op.dtype)

    return op.b.pointwise([], op.sizes, op.dtype, point)


def _triangle(op: Op, x: Tensor, diagonal: int, lower: bool) -> Tensor:
    """``x`` with zeros above (or below) a diagonal."""
    rank = x.rank
    if is_empty(x.sizes):
        return x

    def point(body: Body, v: Scalar) -> Scalar:
        row, column = body.loop_index(rank - 2), body.loop_index(rank - 1)
        bound = body.add(row, body.size(diagonal))
        kept = body.compare("le" if lower else "ge", column, bound)
        return body.select(kept, v, body.like(0, v))

    init = op.b.empty(x.dtype, x.sizes)
    return op.b.generic([(x, identity(rank))], init, identity(rank), ["parallel"] * rank, point)


@lowers("aten.tril.default")
def _tril(op: Op, x: Tensor, diagonal: int = 0) -> Tensor:
    return _triangle(op, x, diagonal, True)


@lowers("aten.triu.default")
def _triu(op: Op, x: Tensor, diagonal: int = 0) -> Tensor:
    return _triangle(op, x, diagonal, False)
