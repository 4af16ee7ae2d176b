"""Reading by index tensors: a ``linalg.generic`` whose body computes the place and extracts the element."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from effc.compiler.capture.importer.body import Body
from effc.compiler.capture.importer.builder import Builder, broadcast_map, identity
from effc.compiler.capture.importer.registry import Op, lowers
from effc.compiler.capture.importer.shapes import reshape, wrap
from effc.compiler.capture.importer.types import Scalar, Size, Tensor, is_empty, numel
from effc.compiler.ir.errors import UnsupportedError


def place(body: Body, index: Scalar, dim: int, size: Size, wraps: bool, checked: bool) -> Scalar:
    """An index value as an i64 position in [0, size).

    ``wraps``: negative counts from the end. ``checked``: one out of range raises IndexError after the call (what is read
    there is the kernel builder's matter: it clamps).
    """
    at = body.cast(index, torch.int64)
    n = body.number(size, torch.int64)
    zero = body.constant(0, torch.int64)
    if wraps and index.dtype != torch.uint8:
        at = body.select(body.compare("lt", at, zero), body.add(at, n), at)
    if not checked:
        return at
    inside = body.binary("arith.andi", body.compare("ge", at, zero), body.compare("lt", at, n))
    body.check(inside, f"index is out of bounds for dimension {dim} with size {size}")
    return at


def advanced(indices: Sequence[Tensor | None], rank: int) -> tuple[list[int], int, list[Size]]:
    """Of ``x[indices]``: the indexed dimensions, where the indices' dimensions stand in the result, and their sizes."""
    for i in indices:
        if i is not None and i.dtype in (torch.bool, torch.uint8):
            raise UnsupportedError("a mask as an index: the result's size depends on the data")
    dims = [d for d, i in enumerate(indices) if i is not None]
    given = [i for i in indices if i is not None]
    adjacent = dims == list(range(dims[0], dims[0] + len(dims))) if dims else True
    shape: list[Size] = []
    for k in range(1, max((i.rank for i in given), default=0) + 1):
        candidates = [i.sizes[-k] for i in given if i.rank >= k]
        shape.insert(0, next((s for s in candidates if s != 1), 1))
    return dims, dims[0] if dims and adjacent else 0, shape


def index_maps(given: Sequence[Tensor], shape: Sequence[Size], first: int) -> list[list[str]]:
    """Index expressions of the index tensors in a space whose dimensions from ``first`` on are ``shape``."""
    maps = []
    for i in given:
        local = broadcast_map(i.sizes, shape)
        maps.append([m if m == "0" else f"d{int(m[1:]) + first}" for m in local])
    return maps


@lowers("aten.index.Tensor", "aten._unsafe_index.Tensor")
def _index(op: Op, x: Tensor, indices: list[Tensor | None]) -> Tensor:
    dims, first, shape = advanced(indices, x.rank)
    given = [i for i in indices if i is not None]
    if is_empty(op.sizes):
        return op.b.empty(x.dtype, op.sizes)
    _require_elements(x, dims)
    checked = "unsafe" not in op.name

    def read(body: Body, *values: Scalar) -> Scalar:
        found = dict(zip(dims, values, strict=True))
        rest = iter([d for d in range(len(op.sizes)) if not first <= d < first + len(shape)])
        at = []
        for d in range(x.rank):
            if d in found:
                at.append(body.to_index(place(body, found[d], d, x.sizes[d], True, checked)))
            else:
                at.append(body.loop_index(next(rest)))
        return body.extract(x, at)

    return _gather(op.b, list(zip(given, index_maps(given, shape, first), strict=True)), op.sizes, x.dtype, read)


def _gather(b: Builder, inputs: Any, sizes: Sequence[Size], dtype: torch.dtype, read: Any) -> Tensor:
    rank = len(sizes)
    return b.generic(inputs, b.empty(dtype, sizes), identity(rank), ["parallel"] * rank, read)


def _require_elements(x: Tensor, dims: Sequence[int]) -> None:
    if any(x.sizes[d] == 0 for d in dims):
        raise UnsupportedError("an index into a dimension without elements")


@lowers("aten.gather.default")
def _gather_lowering(op: Op, x: Tensor, dim: int, index: Tensor, sparse_grad: bool = False) -> Tensor:
    if is_empty(op.sizes):
        return op.b.empty(x.dtype, op.sizes)
    if not x.rank:
        x = reshape(op.b, x, (1,))
    dim = wrap(dim, x.rank)
    _require_elements(x, [dim])
    flat = reshape(op.b, index, (1,)) if not index.rank else index

    def read(body: Body, value: Scalar) -> Scalar:
        at = [body.loop_index(d) for d in range(x.rank)]
        at[dim] = body.to_index(place(body, value, dim, x.sizes[dim], False, True))
        return body.extract(x, at)

    result = _gather(op.b, [(flat, identity(x.rank))], flat.sizes, x.dtype, read)
    return reshape(op.b, result, op.sizes)


@lowers("aten.index_select.default")
def _index_select(op: Op, x: Tensor, dim: int, index: Tensor) -> Tensor:
    if not x.rank:
        x = reshape(op.b, x, (1,))
    return reshape(op.b, _rows(op.b, x, wrap(dim, x.rank), reshape(op.b, index, (numel(index.sizes),))), op.sizes)


@lowers("aten.embedding.default")
def _embedding(op: Op, table: Tensor, index: Tensor, *_: Any) -> Tensor:
    return _rows(op.b, table, 0, index)


def _rows(b: Builder, x: Tensor, dim: int, index: Tensor) -> Tensor:
    """``x`` with dimension ``dim`` replaced by ``index``'s dimensions; a negative index is an error."""
    sizes = (*x.sizes[:dim], *index.sizes, *x.sizes[dim + 1 :])
    if is_empty(sizes):
        return b.empty(x.dtype, sizes)
    _require_elements(x, [dim])

    def read(body: Body, value: Scalar) -> Scalar:
        at = body.to_index(place(body, value, dim, x.sizes[dim], False, True))
        front = [body.loop_index(d) for d in range(dim)]
        back = [body.loop_index(d) for d in range(dim + index.rank, len(sizes))]
        return body.extract(x, [*front, at, *back])

    return _gather(b, [(index, [f"d{dim + i}" for i in range(index.rank)])], sizes, x.dtype, read)


@lowers("aten.take.default")
def _take(op: Op, x: Tensor, index: Tensor) -> Tensor:
    flat = reshape(op.b, x, (numel(x.sizes),))
    if is_empty(op.sizes):
        return op.b.empty(x.dtype, op.sizes)
    _require_elements(flat, [0])

    def read(body: Body, value: Scalar) -> Scalar:
        return body.extract(flat, [body.to_index(place(body, value, 0, flat.sizes[0], True, True))])

    return _gather(op.b, [(index, identity(index.rank))], op.sizes, x.dtype, read)
