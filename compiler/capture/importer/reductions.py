"""Reductions: sums, extrema, moments, any/all, arg-reductions, scans."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from effc.compiler.capture.importer.body import Body
from effc.compiler.capture.importer.builder import Builder
from effc.compiler.capture.importer.registry import Op, lowers
from effc.compiler.capture.importer.shapes import reshape, wrap
from effc.compiler.capture.importer.types import Scalar, Size, Tensor, is_empty, is_float, numel, opmath, simplify
from effc.compiler.ir.errors import UnsupportedError
from effc.compiler.ir.expr import as_expr, product


def dimensions(dims: Any, rank: int) -> list[int]:
    """The reduced dimensions: all of them where none is named."""
    if dims is None or dims == []:
        return list(range(rank))
    return sorted({wrap(d, rank) for d in ([dims] if isinstance(dims, int) else dims)} & set(range(rank)))


def count(x: Tensor, dims: Sequence[int]) -> Size:
    """How many elements are combined for each result."""
    return simplify(product([as_expr(x.sizes[d]) for d in dims]))


@lowers("aten.sum.default", "aten.sum.dim_IntList", "prims.sum.default")
def _sum(op: Op, x: Tensor, dims: Any = None, keepdim: bool = False, **_: Any) -> Tensor:
    return _finish(op, op.b.reduce(x, dimensions(dims, x.rank), "add", opmath(op.dtype)))


def _finish(op: Op, reduced: Tensor) -> Tensor:
    """Round to the result's dtype, and give kept dimensions back."""
    return reshape(op.b, op.b.cast(reduced, op.dtype), op.sizes)


@lowers("aten.mean.default", "aten.mean.dim")
def _mean(op: Op, x: Tensor, dims: Any = None, keepdim: bool = False, **_: Any) -> Tensor:
    over = dimensions(dims, x.rank)
    return _finish(op, mean(op.b, x, over, opmath(op.dtype)))


def mean(b: Builder, x: Tensor, dims: Sequence[int], dtype: torch.dtype) -> Tensor:
    """The mean over ``dims`` (dropped), accumulated and returned in ``dtype``; 0/0 where nothing is combined."""
    total = b.reduce(x, dims, "add", dtype)
    n = as_expr(count(x, dims))
    return b.pointwise([total], total.sizes, dtype, lambda body, v: body.binary("arith.divf", v, body.number(n, dtype)))


@lowers("aten.amax.default", "prims.amax.default", "aten.max.default")
def _amax(op: Op, x: Tensor, dims: Any = None, keepdim: bool = False) -> Tensor:
    return _extremum(op, x, dims, "max")


@lowers("aten.amin.default", "prims.amin.default", "aten.min.default")
def _amin(op: Op, x: Tensor, dims: Any = None, keepdim: bool = False) -> Tensor:
    return _extremum(op, x, dims, "min")


def _extremum(op: Op, x: Tensor, dims: Any, kind: str) -> Tensor:
    over = dimensions(dims, x.rank)
    return _finish(op, op.b.reduce(x, over, _bool_kind(kind, x.dtype), x.dtype))


def _bool_kind(kind: str, dtype: torch.dtype) -> str:
    return kind if dtype != torch.bool else "or" if kind == "max" else "and"


@lowers("aten.prod.default", "aten.prod.dim_int", "prims.prod.default")
def _prod(op: Op, x: Tensor, dims: Any = None, keepdim: bool = False, **_: Any) -> Tensor:
    return _finish(op, op.b.reduce(x, dimensions(dims, x.rank), "mul", opmath(op.dtype)))


@lowers("aten.any.default", "aten.any.dim", "aten.any.dims")
def _any(op: Op, x: Tensor, dims: Any = None, keepdim: bool = False) -> Tensor:
    return _logical(op, x, dims, "or")


@lowers("aten.all.default", "aten.all.dim", "aten.all.dims")
def _all(op: Op, x: Tensor, dims: Any = None, keepdim: bool = False) -> Tensor:
    return _logical(op, x, dims, "and")


def _logical(op: Op, x: Tensor, dims: Any, kind: str) -> Tensor:
    if op.dtype == torch.uint8:  # torch answers 0/1 in the input's dtype
        over = dimensions(dims, x.rank)
        return _finish(op, op.b.reduce(op.b.cast(x, torch.bool), over, kind, torch.bool))
    return _finish(op, op.b.reduce(x, dimensions(dims, x.rank), kind, torch.bool))


# -- moments ------------------------------------------------------------------------------------------------------------
@lowers("aten.var.correction", "prims.var.default", "aten.std.correction")
def _var(op: Op, x: Tensor, dims: Any = None, correction: Any = 1, keepdim: bool = False, **_: Any) -> Tensor:
    over = dimensions(dims, x.rank)
    variance, _mean_value = moments(op.b, x, over, 1 if correction is None else correction)
    if "std" in op.name:
        variance = op.b.pointwise(
            [variance], variance.sizes, variance.dtype, lambda body, v: body.unary("math.sqrt", v)
        )
    return _finish(op, variance)


@lowers("aten.var_mean.correction")
def _var_mean(op: Op, x: Tensor, dims: Any = None, correction: Any = 1, keepdim: bool = False) -> list[Tensor]:
    over = dimensions(dims, x.rank)
    return [_finish(op, v) for v in moments(op.b, x, over, 1 if correction is None else correction)]


def moments(b: Builder, x: Tensor, dims: Sequence[int], correction: int | float) -> tuple[Tensor, Tensor]:
    """(variance, mean) over ``dims``: the rounded mean first, then the sums of the distances from it and of their squares.

    The distances' own mean corrects the variance (Chan, Golub and LeVeque, 1983): so equal numbers, whose sum is rounded, are at
    distance 0 from their mean, as they are in eager. It corrects the mean too, where most distances are exact, being less than half of
    the mean (Sterbenz): others round it to the numbers' own grid, each the same way.
    """
    dtype = opmath(x.dtype)
    kept = tuple(1 if d in dims else s for d, s in enumerate(x.sizes))

    def distance(body: Body, v: Scalar, m: Scalar) -> Scalar:
        return body.sub(body.cast(v, dtype), m)

    def corrected(body: Body, m: Scalar, rest: Scalar, squared: Scalar) -> Scalar:
        limit = body.mul(body.mul(m, m), body.mul(body.number(elements, dtype), body.constant(1 / 16, dtype)))
        exact = body.compare("le", squared, limit)
        return body.select(exact, body.add(m, rest), m)  # an infinite mean has no distances

    def central(body: Body, squared: Scalar, total: Scalar, rest: Scalar) -> Scalar:
        return body.binary("arith.maximumf", body.sub(squared, body.mul(total, rest)), body.constant(0.0, dtype))

    average = mean(b, x, dims, dtype)
    distances = b.pointwise([x, reshape(b, average, kept)], x.sizes, dtype, distance)
    total = b.reduce(distances, dims, "add", dtype)
    squares = b.reduce(distances, dims, "add", dtype, lambda body, d: body.mul(d, d))
    elements = as_expr(count(x, dims))
    rest = b.pointwise(
        [total], total.sizes, dtype, lambda body, v: body.binary("arith.divf", v, body.number(elements, dtype))
    )
    average = b.pointwise([average, rest, squares], average.sizes, dtype, corrected)
    squares = b.pointwise([squares, total, rest], squares.sizes, dtype, central)
    n = count(x, dims)

    def divide(body: Body, v: Scalar) -> Scalar:
        if isinstance(n, int):
            freedom = body.constant(max(float(n) - correction, 0.0), dtype)
        else:
            left = body.sub(body.number(n, dtype), body.constant(float(correction), dtype))
            freedom = body.binary("arith.maximumf", left, body.constant(0.0, dtype))
        return body.binary("arith.divf", v, freedom)

    return b.pointwise([squares], squares.sizes, dtype, divide), average


# -- positions ----------------------------------------------------------------------------------------------------------
def arg_reduce(b: Builder, x: Tensor, dim: int, kind: str) -> Tensor:
    """Position (i64) of the first extremum along ``dim`` (dropped); a NaN beats every number."""
    sizes = tuple(s for d, s in enumerate(x.sizes) if d != dim)
    if is_empty(sizes):
        return b.empty(torch.int64, sizes)
    if x.dtype in (torch.bool, torch.uint8):
        x = b.cast(x, torch.int32)
    out = Tensor("", torch.int64, sizes)
    text = f'"effc.argreduce"({x.name}) {{dim = {dim} : i64, kind = "{kind}"}} : ({x.type}) -> {out.type}'
    return Tensor(b.emit(text), torch.int64, sizes)


@lowers("aten.argmax.default", "aten.argmin.default")
def _arg(op: Op, x: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    kind = "max" if "argmax" in op.name else "min"
    if dim is None or not x.rank:
        x, dim = reshape(op.b, x, (numel(x.sizes),)), 0
    return reshape(op.b, arg_reduce(op.b, x, wrap(dim, x.rank), kind), op.sizes)


@lowers("aten.max.dim", "aten.min.dim")
def _extremum_dim(op: Op, x: Tensor, dim: int, keepdim: bool = False) -> list[Tensor | None]:
    kind = "max" if "max" in op.name else "min"
    if not x.rank:
        return [x, op.b.fill(0, torch.int64, ())]
    dim = wrap(dim, x.rank)
    values = op.b.reduce(x, [dim], _bool_kind(kind, x.dtype), x.dtype)
    result: list[Tensor | None] = [reshape(op.b, values, op.sizes), None]
    if 1 in op.used:
        result[1] = reshape(op.b, arg_reduce(op.b, x, dim, kind), op.results[1])
    return result


# -- scans --------------------------------------------------------------------------------------------------------------
@lowers("aten.cumsum.default", "aten.cumprod.default", "aten.logcumsumexp.default")
def _scan(op: Op, x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    kind = "logaddexp" if "log" in op.name else "add" if "cumsum" in op.name else "mul"
    x = op.b.cast(x, opmath(op.dtype))
    if not x.rank or is_empty(x.sizes):
        return op.b.cast(x, op.dtype)
    text = f'"effc.scan"({x.name}) {{dim = {wrap(dim, x.rank)} : i64, kind = "{kind}"}} : ({x.type}) -> {x.type}'
    return op.b.cast(Tensor(op.b.emit(text), x.dtype, x.sizes), op.dtype)


@lowers("aten.cummax.default", "aten.cummin.default")
def _scan_extremum(op: Op, x: Tensor, dim: int) -> list[Tensor]:
    """Values and positions: of equal values the last, and a NaN stays."""
    b = op.b
    if not x.rank:
        return [x, b.fill(0, torch.int64, ())]
    if is_empty(x.sizes):
        return [x, b.empty(torch.int64, x.sizes)]
    if not is_float(x.dtype) and x.dtype in (torch.bool, torch.uint8):
        raise UnsupportedError(f"{op.name} of {x.dtype}")
    kind = "max" if "cummax" in op.name else "min"
    positions = Tensor("", torch.int64, x.sizes)
    text = (
        f'"effc.scan"({x.name}) {{dim = {wrap(dim, x.rank)} : i64, kind = "{kind}"}} '
        f": ({x.type}) -> ({x.type}, {positions.type})"
    )
    name = b.fresh()
    b.lines.append(f"    {name}:2 = {text} loc({b.location})")
    return [Tensor(f"{name}#0", x.dtype, x.sizes), Tensor(f"{name}#1", torch.int64, x.sizes)]
