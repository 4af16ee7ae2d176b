"""Views, concatenation and repetition. On values a view is an op like any other."""

from __future__ import annotations

from typing import Any

from effc.compiler.capture.importer.body import Body
from effc.compiler.capture.importer.builder import identity
from effc.compiler.capture.importer.registry import Op, lowers
from effc.compiler.capture.importer.shapes import (
    clamp_index,
    concat,
    expand,
    extract_slice,
    permute,
    reshape,
    unsqueeze,
    wrap,
)
from effc.compiler.capture.importer.types import Scalar, Size, Tensor, is_empty, simplify
from effc.compiler.ir.errors import UnsupportedError
from effc.compiler.ir.expr import as_expr


@lowers(
    "aten.view.default", "aten.reshape.default", "aten._unsafe_view.default", "aten._reshape_alias.default",
    "aten.squeeze.default", "aten.squeeze.dim", "aten.squeeze.dims", "aten.unsqueeze.default",
    "prims.view_of.default", "aten.flatten.using_ints", "aten.unflatten.int", "prims.collapse_view.default",
    "prims.split_dim.default", "aten.view_copy.default", "aten.squeeze_copy.default", "aten.unsqueeze_copy.default",
)  # fmt: skip
def _reshape(op: Op, x: Tensor, *_: Any, **__: Any) -> Tensor:
    return reshape(op.b, x, op.sizes)


@lowers(
    "aten.alias.default", "aten.detach.default", "aten.clone.default", "aten.contiguous.default", "prims.clone.default",
    "aten.lift_fresh_copy.default", "aten.lift_fresh.default", "aten.lift.default", "aten.detach_copy.default",
    "aten.alias_copy.default", "aten.positive.default",
)  # fmt: skip
def _alias(op: Op, x: Tensor, **_: Any) -> Tensor:
    return x


@lowers("aten.permute.default", "prims.transpose.default", "aten.permute_copy.default")
def _permute(op: Op, x: Tensor, dims: list[int]) -> Tensor:
    return permute(op.b, x, dims)


@lowers("aten.transpose.int", "aten.swapaxes.default")
def _transpose(op: Op, x: Tensor, a: int, c: int) -> Tensor:
    if not x.rank:
        return x
    order = list(range(x.rank))
    a, c = wrap(a, x.rank), wrap(c, x.rank)
    order[a], order[c] = c, a
    return permute(op.b, x, order)


@lowers("aten.t.default")
def _t(op: Op, x: Tensor) -> Tensor:
    return permute(op.b, x, list(range(x.rank))[::-1])


@lowers("aten.expand.default", "aten.expand_copy.default", "aten.broadcast_to.default")
def _expand_lowering(op: Op, x: Tensor, sizes: list[Size], implicit: bool = False) -> Tensor:
    return expand(op.b, x, op.sizes)


@lowers("prims.broadcast_in_dim.default")
def _broadcast_in_dim(op: Op, x: Tensor, sizes: list[Size], dims: list[int]) -> Tensor:
    placed: list[Size] = [1] * len(sizes)
    for d, s in zip(dims, x.sizes, strict=True):
        placed[d] = s
    return expand(op.b, reshape(op.b, x, placed), op.sizes)


@lowers("aten.slice.Tensor", "aten.slice_copy.Tensor")
def _slice(
    op: Op, x: Tensor, dim: int = 0, start: Size | None = None, end: Size | None = None, step: Size = 1
) -> Tensor:
    dim = wrap(dim, x.rank)
    if not isinstance(step, int):
        raise UnsupportedError(f"a slice with the symbolic step {step}")
    first = clamp_index(start, x.sizes[dim], 0)
    return extract_slice(op.b, x, dim, first, op.sizes[dim], step)


@lowers("aten.narrow.default")
def _narrow(op: Op, x: Tensor, dim: int, start: Size, length: Size) -> Tensor:
    dim = wrap(dim, x.rank)
    return extract_slice(op.b, x, dim, clamp_index(start, x.sizes[dim], 0), op.sizes[dim])


@lowers("aten.select.int", "aten.select_copy.int")
def _select(op: Op, x: Tensor, dim: int, index: Size) -> Tensor:
    dim = wrap(dim, x.rank)
    return extract_slice(op.b, x, dim, clamp_index(index, x.sizes[dim], 0), 1, drop=True)


@lowers(
    "aten.split.Tensor", "aten.split_with_sizes.default", "aten.split_with_sizes_copy.default", "aten.split_copy.Tensor"
)
def _split(op: Op, x: Tensor, sizes: Any, dim: int = 0) -> list[Tensor]:
    dim = wrap(dim, x.rank)
    start: Size = 0
    out = []
    for result in op.results:
        out.append(extract_slice(op.b, x, dim, start, result[dim]))
        start = simplify(as_expr(start) + result[dim])
    return out


@lowers("aten.unbind.int", "aten.unbind_copy.int")
def _unbind(op: Op, x: Tensor, dim: int = 0) -> list[Tensor]:
    dim = wrap(dim, x.rank)
    return [extract_slice(op.b, x, dim, i, 1, drop=True) for i in range(len(op.results))]


@lowers("aten.repeat.default")
def _repeat(op: Op, x: Tensor, repeats: list[Size]) -> Tensor:
    b = op.b
    x = reshape(b, x, (*[1] * (len(repeats) - x.rank), *x.sizes))
    if is_empty(op.sizes):
        return b.empty(x.dtype, op.sizes)
    spread: list[Size] = []
    wide: list[Size] = []
    for size, count in zip(x.sizes, repeats, strict=True):
        spread += [1, size]
        wide += [count, size]
    return reshape(b, expand(b, reshape(b, x, spread), wide), op.sizes)


@lowers("aten.flip.default", "prims.rev.default")
def _flip(op: Op, x: Tensor, dims: list[int]) -> Tensor:
    flipped = {wrap(d, x.rank) for d in dims}
    if not x.rank or is_empty(x.sizes):
        return x

    def read(body: Body) -> Scalar:
        at = [body.loop_index(d) for d in range(x.rank)]
        for d in flipped:
            at[d] = body.sub(body.size(simplify(as_expr(x.sizes[d]) - 1)), at[d])
        return body.extract(x, at)

    return op.b.pointwise([], op.sizes, x.dtype, read)


@lowers("aten.diagonal.default", "aten.diagonal_copy.default")
def _diagonal(op: Op, x: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    dim1, dim2 = wrap(dim1, x.rank), wrap(dim2, x.rank)
    if is_empty(op.sizes):
        return op.b.empty(x.dtype, op.sizes)
    last = len(op.sizes) - 1
    shift = {dim1: max(-offset, 0), dim2: max(offset, 0)}

    def read(body: Body) -> Scalar:
        rest = iter(range(last))
        along = body.loop_index(last)
        at = [
            body.add(along, body.size(shift[d])) if d in shift else body.loop_index(next(rest)) for d in range(x.rank)
        ]
        return body.extract(x, at)

    return op.b.pointwise([], op.sizes, x.dtype, read)


@lowers("aten.unfold.default", "aten.unfold_copy.default")
def _unfold(op: Op, x: Tensor, dim: int, size: int, step: int) -> Tensor:
    dim = wrap(dim, x.rank)
    if not x.rank:
        return reshape(op.b, x, op.sizes)
    rank = x.rank
    index = [f"d{d} * {step} + d{rank}" if d == dim else f"d{d}" for d in range(rank)]
    init = op.b.empty(x.dtype, op.sizes)
    if is_empty(op.sizes):
        return init
    return op.b.generic([(x, index)], init, identity(rank + 1), ["parallel"] * (rank + 1), lambda body, v: v)


@lowers("aten.cat.default", "prims.cat.default")
def _cat(op: Op, tensors: list[Tensor], dim: int = 0) -> Tensor:
    # torch skips the legacy empty tensor [0] among parts of higher rank
    parts = [op.b.cast(t, op.dtype) for t in tensors if t.rank == len(op.sizes)]
    return concat(op.b, parts, wrap(dim, len(op.sizes)), op.sizes)


@lowers("aten.stack.default")
def _stack(op: Op, tensors: list[Tensor], dim: int = 0) -> Tensor:
    dim = wrap(dim, len(op.sizes))
    parts = [unsqueeze(op.b, op.b.cast(t, op.dtype), dim) for t in tensors]
    return concat(op.b, parts, dim, op.sizes)
