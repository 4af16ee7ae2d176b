"""Rearranging values: reshape, permute, expand, slice, concatenate: what the families' lowerings share."""

from __future__ import annotations

from collections.abc import Sequence

from effc.compiler.capture.importer.builder import Builder
from effc.compiler.capture.importer.types import Size, Tensor, is_empty, simplify, tensor_type
from effc.compiler.ir.errors import UnsupportedError
from effc.compiler.ir.expr import Expr, as_expr, const, mod, product

Group = tuple[list[int], list[int]]  # dimensions of the source, dimensions of the target


def wrap(dim: int, rank: int) -> int:
    """A dimension counted from the front; a scalar has one dimension to name."""
    return dim + max(rank, 1) if dim < 0 else dim


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
    if is_empty(sizes):
        return b.empty(parts[0].dtype, sizes)
    parts = [p for p in parts if not is_empty(p.sizes)]
    if len(parts) == 1:
        return parts[0]
    # tensor.concat infers its sizes from its operands' types alone.
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
