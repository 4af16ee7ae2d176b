"""Views: reshape, permute, expand, slice and their kin. On values a view is an op like any other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from effc.compiler.capture.importer.body import Body
from effc.compiler.capture.importer.builder import Builder, broadcast_map, identity
from effc.compiler.capture.importer.registry import Op, lowers
from effc.compiler.capture.importer.types import Scalar, Size, Tensor, is_empty, simplify, tensor_type
from effc.compiler.ir.errors import UnsupportedError
from effc.compiler.ir.expr import Expr, as_expr, const, mod, product

Group = tuple[list[int], list[int]]  # dimensions of the source, dimensions of the target


def wrap(dim: int, rank: int) -> int:
    """A dimension counted from the front; a scalar has one dimension to name."""
    return dim + max(rank, 1) if dim < 0 else dim


# -- helpers for every family -----------------------------------------------------------------------------------------
def reshape(b: Builder, x: Tensor, sizes: Sequence[Size]) -> Tensor:
    """The same elements in row-major order under other sizes: collapse to common groups, then expand."""
    sizes = tuple(sizes)
    if x.sizes == sizes:
        return x
    if is_empty(sizes):
        return b.empty(x.dtype, sizes)
    groups = _group(x.sizes, sizes)
    if any(len(source) > 1 for source, _ in groups) or (x.rank and not groups):
        x = _collapse(b, x, groups)
        groups = [([i], target) for i, (_, target) in enumerate(groups)]
    if all(len(target) == 1 for _, target in groups) and len(groups) == len(sizes):
        return Tensor(x.name, x.dtype, x.sizes)
    return _expand(b, x, sizes, groups)


def permute(b: Builder, x: Tensor, order: Sequence[int]) -> Tensor:
    """Dimension *i* of the result is dimension ``order[i]`` of ``x``."""
    order = [wrap(d, x.rank) for d in order]
    if order == list(range(x.rank)):
        return x
    out = b.empty(x.dtype, [x.sizes[d] for d in order])
    if is_empty(out.sizes):
        return out
    text = f"linalg.transpose ins({x.name} : {x.type}) outs({out.name} : {out.type}) permutation = {order}"
    return Tensor(b.emit(text), x.dtype, out.sizes)


def expand(b: Builder, x: Tensor, sizes: Sequence[Size]) -> Tensor:
    """Broadcast to ``sizes``, new dimensions at the front."""
    sizes = tuple(sizes)
    if x.sizes == sizes:
        return x
    return b.pointwise([x], sizes, x.dtype, lambda body, v: v)


def extract_slice(
    b: Builder, x: Tensor, dim: int, start: Size, size: Size, step: int = 1, drop: bool = False
) -> Tensor:
    """``size`` elements of ``dim`` from ``start`` by ``step``; ``drop`` removes the dimension (its size is 1)."""
    sizes = [size if d == dim else s for d, s in enumerate(x.sizes)]
    kept = tuple(s for d, s in enumerate(sizes) if not (drop and d == dim))
    if is_empty(kept):
        return b.empty(x.dtype, kept)
    if not drop and x.sizes == kept and start == 0:
        return x
    offsets: list[Size] = [start if d == dim else 0 for d in range(x.rank)]
    strides: list[Size] = [step if d == dim else 1 for d in range(x.rank)]
    text = (
        f"tensor.extract_slice {x.name}{b.mixed(offsets)} {b.mixed(sizes)} {b.mixed(strides)} "
        f": {x.type} to {tensor_type(x.dtype, kept)}"
    )
    return Tensor(b.emit(text), x.dtype, kept)


def unsqueeze(b: Builder, x: Tensor, dim: int) -> Tensor:
    return reshape(b, x, (*x.sizes[:dim], 1, *x.sizes[dim:]))


def concat(b: Builder, parts: Sequence[Tensor], dim: int, sizes: Sequence[Size]) -> Tensor:
    """Tensors of one dtype joined along ``dim`` into ``sizes``; parts without elements are left out."""
    parts = [p for p in parts if not is_empty(p.sizes)]
    if is_empty(sizes) or not parts:
        return b.empty(parts[0].dtype, sizes)
    if len(parts) == 1:
        return parts[0]
    # tensor.concat infers its sizes: where one part has a static size that torch knows for all, it holds for the result.
    fixed = tuple(
        sum(p.sizes[d] for p in parts) if d == dim and all(isinstance(p.sizes[d], int) for p in parts) else sizes[d]
        for d in range(len(sizes))
    )
    text = (
        f"tensor.concat dim({dim}) {', '.join(p.name for p in parts)} : ({', '.join(p.type for p in parts)}) "
        f"-> {tensor_type(parts[0].dtype, fixed)}"
    )
    return Tensor(b.emit(text), parts[0].dtype, fixed)


def clamp_index(start: Size | None, size: Size, default: Size) -> Size:
    """A slice bound as Python means it: None, counted from the end where negative, cut off at the ends."""
    if start is None:
        return default
    if isinstance(start, int) and start < 0:
        start = simplify(as_expr(size) + start) if isinstance(size, Expr) else max(size + start, 0)
    if isinstance(start, int) and isinstance(size, int):
        return min(max(start, 0), size)
    if isinstance(start, int) and start >= 1 << 62:
        return size
    return start


def _group(source: Sequence[Size], target: Sequence[Size]) -> list[Group]:
    """Split two factorizations of one element count into matching runs, as short as the sizes show."""
    groups: list[Group] = []
    i = j = 0
    while i < len(source) and j < len(target):
        left, right = [i], [j]
        a, c = as_expr(source[i]), as_expr(target[j])
        i, j = i + 1, j + 1
        while a != c and (i < len(source) or j < len(target)):
            if j >= len(target) or (i < len(source) and _smaller(a, c)):
                left.append(i)
                a = a * as_expr(source[i])
                i += 1
            else:
                right.append(j)
                c = c * as_expr(target[j])
                j += 1
        groups.append((left, right))
    if groups:  # trailing ones
        groups[-1][0].extend(range(i, len(source)))
        groups[-1][1].extend(range(j, len(target)))
    return groups


def _smaller(a: Expr, c: Expr) -> bool:
    """Whether the source run must grow: it is less, or (symbolic) divides the target's."""
    if a.constant is not None and c.constant is not None:
        return a.constant < c.constant
    return c.constant is None and mod(c, a) == const(0) if a.constant != 0 else False


def _collapse(b: Builder, x: Tensor, groups: Sequence[Group]) -> Tensor:
    sizes = []
    for source, _ in groups:
        run = [x.sizes[d] for d in source]
        size = simplify(product([as_expr(s) for s in run]))
        if isinstance(size, int) and any(isinstance(s, Expr) for s in run):
            raise UnsupportedError(f"a reshape whose symbolic sizes {run} multiply to {size}")
        sizes.append(size)
    text = (
        f"tensor.collapse_shape {x.name} {[source for source, _ in groups]} "
        f": {x.type} into {tensor_type(x.dtype, sizes)}"
    )
    return Tensor(b.emit(text), x.dtype, tuple(sizes))


def _expand(b: Builder, x: Tensor, sizes: tuple[Size, ...], groups: Sequence[Group]) -> Tensor:
    for (source, *_), target in groups:
        run = [sizes[d] for d in target]
        if len(run) == 1:
            sizes = tuple(x.sizes[source] if d == target[0] else s for d, s in enumerate(sizes))
        elif isinstance(x.sizes[source], int) and any(isinstance(s, Expr) for s in run):
            raise UnsupportedError(f"a reshape of the static size {x.sizes[source]} into {run}")
    text = (
        f"tensor.expand_shape {x.name} {[target for _, target in groups]} output_shape {b.mixed(sizes)} "
        f": {x.type} into {tensor_type(x.dtype, sizes)}"
    )
    return Tensor(b.emit(text), x.dtype, sizes)


# -- lowerings --------------------------------------------------------------------------------------------------------
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


@lowers("aten.split.Tensor", "aten.split_with_sizes.default", "aten.split_with_sizes_copy.default", "aten.split_copy.Tensor")
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
        at = [body.add(along, body.size(shift[d])) if d in shift else body.loop_index(next(rest)) for d in range(x.rank)]
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
    parts = [op.b.cast(t, op.dtype) for t in tensors if t.rank == len(op.sizes)]  # torch skips the legacy empty [0]
    return concat(op.b, parts, wrap(dim, len(op.sizes)), op.sizes)


@lowers("aten.stack.default")
def _stack(op: Op, tensors: list[Tensor], dim: int = 0) -> Tensor:
    dim = wrap(dim, len(op.sizes))
    parts = [unsqueeze(op.b, op.b.cast(t, op.dtype), dim) for t in tensors]
    return concat(op.b, parts, dim, op.sizes)


__all__ = ["broadcast_map", "concat", "expand", "extract_slice", "permute", "reshape", "unsqueeze", "wrap"]
