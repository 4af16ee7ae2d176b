"""Writing by index tensors, all through one op:

``"effc.scatter"(%base, %updates, %index…) {kind, coordinates, index_maps}``: the base, where for every point *p* of the updates'
index space (row-major order) the element ``base[c(p)]`` is combined with ``updates[p]``. Coordinate *k* of ``c(p)`` is ``p[j]`` for
``coordinates[k] = j >= 0``, and for ``coordinates[k] = -1 - i`` the element of index tensor *i* (i64, in bounds) that
``index_maps[i]`` selects at *p*. ``kind``: ``assign`` (the last wins), ``add``, ``mul``, ``max``, ``min``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from effc.compiler.capture.importer.body import Body
from effc.compiler.capture.importer.builder import Builder, identity, neutral
from effc.compiler.capture.importer.division import floor_div
from effc.compiler.capture.importer.indexing import advanced, index_maps, place
from effc.compiler.capture.importer.registry import Op, lowers
from effc.compiler.capture.importer.shapes import expand, extract_slice, reshape, wrap
from effc.compiler.capture.importer.types import Scalar, Size, Tensor, is_empty, is_float, numel, opmath
from effc.compiler.ir.errors import UnsupportedError


def scatter(
    b: Builder,
    base: Tensor,
    updates: Tensor,
    indexed: Mapping[int, tuple[Tensor, Sequence[str]]],
    direct: Mapping[int, int],
    kind: str,
) -> Tensor:
    """See the module's docstring. ``indexed``: dimension of the base -> index tensor and its map; ``direct``: -> update dimension."""
    if is_empty(updates.sizes) or is_empty(base.sizes):
        return base
    dims = ", ".join(identity(updates.rank))
    order = list(indexed)
    coordinates = [-1 - order.index(d) if d in indexed else direct[d] for d in range(base.rank)]
    maps = ", ".join(f"affine_map<({dims}) -> ({', '.join(indexed[d][1])})>" for d in order)
    operands = [base, updates, *(indexed[d][0] for d in order)]
    array = ": " + ", ".join(map(str, coordinates)) if coordinates else ""
    text = (
        f'"effc.scatter"({", ".join(t.name for t in operands)}) {{coordinates = array<i64{array}>, '
        f'index_maps = [{maps}], kind = "{kind}"}} : ({", ".join(t.type for t in operands)}) -> {base.type}'
    )
    return Tensor(b.emit(text), base.dtype, base.sizes)


def positions(b: Builder, index: Tensor, dim: int, size: Size, wraps: bool) -> Tensor:
    """``index`` as i64 positions; ``effc.scatter`` itself raises IndexError for one out of range."""

    def point(body: Body, value: Scalar) -> Scalar:
        return place(body, value, dim, size, wraps, False)

    if not wraps:
        return b.cast(index, torch.int64)

    return b.pointwise([index], index.sizes, torch.int64, point)


def _combine(
    op: Op, base: Tensor, updates: Tensor, indexed: Any, direct: Mapping[int, int], kind: str, include_self: bool = True
) -> Tensor:
    """Accumulate in float32 where the base is a 16-bit float; ``include_self=False`` forgets the base where it is written."""
    b = op.b
    if kind != "assign" and base.dtype == torch.bool:
        raise UnsupportedError(f"{op.name} of bool with a reduction")
    if kind != "assign" and base.dtype == torch.uint8 and kind in ("max", "min"):
        raise UnsupportedError(f"{op.name} of uint8 with a reduction")
    dtype = base.dtype if kind == "assign" else opmath(base.dtype)
    wide, updates = b.cast(base, dtype), b.cast(updates, dtype)
    if not include_self and kind != "assign":
        blank = b.fill(neutral("add" if kind == "mean" else kind, dtype), dtype, updates.sizes)
        wide = scatter(b, wide, blank, indexed, direct, "assign")
    if kind != "mean":
        return b.cast(scatter(b, wide, updates, indexed, direct, kind), base.dtype)
    total = scatter(b, wide, updates, indexed, direct, "add")
    ones = b.fill(1, dtype, base.sizes)
    if not include_self:
        ones = scatter(b, ones, b.fill(0, dtype, updates.sizes), indexed, direct, "assign")
    counts = scatter(b, ones, b.fill(1, dtype, updates.sizes), indexed, direct, "add")

    def divide(body: Body, v: Scalar, n: Scalar) -> Scalar:
        quotient = body.binary("arith.divf", v, n) if is_float(dtype) else floor_div(body, v, n)
        return body.cast(quotient, base.dtype)

    return b.pointwise([total, counts], base.sizes, base.dtype, divide)


@lowers("aten.index_put.default", "aten._unsafe_index_put.default")
def _index_put(op: Op, x: Tensor, indices: list[Tensor | None], values: Tensor, accumulate: bool = False) -> Tensor:
    b = op.b
    if any(i is not None and i.dtype == torch.bool for i in indices):
        return _masked_put(op, x, indices, values, accumulate)
    dims, first, shape = advanced(indices, x.rank)
    rest = [d for d in range(x.rank) if d not in dims]
    ahead = [d for k, d in enumerate(rest) if k < first]
    space = (*(x.sizes[d] for d in ahead), *shape, *(x.sizes[d] for d in rest[len(ahead) :]))
    if is_empty(space):
        return x
    if any(x.sizes[d] == 0 for d in dims):
        raise UnsupportedError("an index into a dimension without elements")
    direct = {d: k if k < first else k + len(shape) for k, d in enumerate(rest)}
    given = [i for i in indices if i is not None]
    maps = index_maps(given, shape, first)
    ready = [positions(b, i, d, x.sizes[d], True) for d, i in zip(dims, given, strict=True)]
    indexed = {d: (i, m) for d, i, m in zip(dims, ready, maps, strict=True)}
    return _combine(op, x, expand(b, values, space), indexed, direct, "add" if accumulate else "assign")


def _masked_put(op: Op, x: Tensor, indices: list[Tensor | None], values: Tensor, accumulate: bool) -> Tensor:
    """``x[mask] = value`` for a mask over the leading dimensions and one value: a choice at each point."""
    mask = indices[0]
    if len(indices) != 1 or mask is None or numel(values.sizes) != 1 or accumulate:
        raise UnsupportedError("writing several values through a mask: their number depends on the data")
    mask = reshape(op.b, mask, (*mask.sizes, *[1] * (x.rank - mask.rank)))
    single = reshape(op.b, values, ())

    def choose(body: Body, chosen: Scalar, old: Scalar, new: Scalar) -> Scalar:
        return body.select(chosen, body.cast(new, x.dtype), old)

    return op.b.pointwise([mask, x, single], x.sizes, x.dtype, choose)


@lowers(
    "aten.scatter.src", "aten.scatter.value", "aten.scatter.reduce", "aten.scatter.value_reduce", "aten.scatter_add.default",
    "aten.scatter_reduce.two",
)  # fmt: skip
def _scatter(
    op: Op, x: Tensor, dim: int, index: Tensor, source: Any, reduce: str | None = None, include_self: bool = True
) -> Tensor:
    b = op.b
    if is_empty(index.sizes):
        return x
    kinds = {"sum": "add", "prod": "mul", "amax": "max", "amin": "min", "multiply": "mul", "add": "add", "mean": "mean"}
    kind = "add" if "scatter_add" in op.name else "assign" if reduce is None else kinds[reduce]
    rank = max(x.rank, 1)
    dim = wrap(dim, rank)
    base = reshape(b, x, (1,)) if not x.rank else x
    flat = reshape(b, index, (1,)) if not index.rank else index
    if base.sizes[dim] == 0:
        raise UnsupportedError("an index into a dimension without elements")
    if isinstance(source, Tensor):
        updates = reshape(b, source, (1,)) if not source.rank else source
        for d in range(rank):
            updates = extract_slice(b, updates, d, 0, flat.sizes[d])
    else:
        updates = b.fill(source, base.dtype, flat.sizes)
    ready = positions(b, flat, dim, base.sizes[dim], False)
    direct = {d: d for d in range(rank) if d != dim}
    result = _combine(op, base, updates, {dim: (ready, identity(rank))}, direct, kind, include_self)
    return reshape(b, result, op.sizes)


@lowers("aten.index_add.default", "aten.index_copy.default", "aten.index_fill.int_Scalar", "aten.index_reduce.default")
def _index_write(
    op: Op, x: Tensor, dim: int, index: Tensor, source: Any, reduce: str | None = None, *, alpha: Any = 1,
    include_self: bool = True,
) -> Tensor:  # fmt: skip
    b = op.b
    rank = max(x.rank, 1)
    dim = wrap(dim, rank)
    base = reshape(b, x, (1,)) if not x.rank else x
    flat = reshape(b, index, (numel(index.sizes),))
    space = (*base.sizes[:dim], flat.sizes[0], *base.sizes[dim + 1 :])
    if is_empty(space):
        return x
    if base.sizes[dim] == 0:
        raise UnsupportedError("an index into a dimension without elements")
    updates = reshape(b, source, space) if isinstance(source, Tensor) else b.fill(source, base.dtype, space)
    if alpha != 1:
        wide = opmath(base.dtype)
        updates = b.pointwise(
            [updates], space, wide, lambda body, v: body.mul(body.cast(v, wide), body.number(alpha, wide))
        )
    kinds = {"prod": "mul", "amax": "max", "amin": "min", "mean": "mean", None: "assign"}
    kind = "add" if "index_add" in op.name else kinds[reduce]
    ready = positions(b, flat, dim, base.sizes[dim], "fill" in op.name)
    direct = {d: d for d in range(rank) if d != dim}
    result = _combine(op, base, updates, {dim: (ready, [f"d{dim}"])}, direct, kind, include_self)
    return reshape(b, result, op.sizes)
