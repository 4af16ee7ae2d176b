"""Views as index transformations: where an element of the result lies in the source (*backward*), and the reverse where it exists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from effc.compiler.ir.expr import Expr, const, floordiv, mod, product
from effc.compiler.pipeline.graph import Op, Tensor

Index = tuple[Expr, ...]
Ranges = Mapping[str, Expr]


def linearize(index: Sequence[Expr], sizes: Sequence[Expr]) -> Expr:
    """Row-major position of ``index`` in a box of ``sizes``."""
    total = const(0)
    for i, size in zip(index, sizes, strict=True):
        total = total * size + i
    return total


def delinearize(position: Expr, sizes: Sequence[Expr], ranges: Ranges) -> Index:
    """The index in a box of ``sizes`` at a row-major position that lies inside it."""
    found: list[Expr] = []
    wide = [i for i, size in enumerate(sizes) if size.constant != 1]
    for i, size in enumerate(sizes):
        if size.constant == 1:
            found.append(const(0))
            continue
        part = floordiv(position, product(sizes[i + 1 :]), ranges)
        found.append(part if i == wide[0] else mod(part, size, ranges))
    return tuple(found)


def backward(view: Op, index: Index, ranges: Ranges) -> Index:
    """The source index of a view's result index."""
    source = view.operands[0]
    match view.kind:
        case "cast":
            return index
        case "border":
            return tuple(i - low for i, low in zip(index, view.attributes["low"], strict=True))
        case "slice":
            kept = iter(index)
            dropped, offsets, strides = (view.attributes[k] for k in ("dropped", "offsets", "strides"))
            return tuple(
                offsets[i] if i in dropped else offsets[i] + next(kept) * strides[i] for i in range(len(source.sizes))
            )
        case "remap":
            at = {f"d{i}": e for i, e in enumerate(index)}
            return tuple(e.substitute(at) for e in view.attributes["map"])
        case "expand":
            sizes = view.results[0].sizes
            return tuple(linearize([index[i] for i in g], [sizes[i] for i in g]) for g in view.attributes["groups"])
        case "collapse":
            return _split_groups(view, index, source.sizes, ranges)
    raise AssertionError(view.kind)


def forward(view: Op, index: Index, ranges: Ranges) -> Index | None:
    """The result index of a source index, where the view is a bijection; else None."""
    result = view.results[0]
    match view.kind:
        case "cast":
            return index
        case "remap":
            order = permutation(view)
            return tuple(index[axis] for axis in order) if order is not None else None
        case "expand":
            return _split_groups(view, index, result.sizes, ranges)
        case "collapse":
            sizes = view.operands[0].sizes
            return tuple(linearize([index[i] for i in g], [sizes[i] for i in g]) for g in view.attributes["groups"])
    return None


def permutation(remap: Op) -> tuple[int, ...] | None:
    """Of each result dim, the source dim that it is, where a remap only reorders dims; else None."""
    position = {str(e): axis for axis, e in enumerate(remap.attributes["map"])}
    rank = len(remap.results[0].sizes)
    if len(remap.attributes["map"]) != rank or any(f"d{i}" not in position for i in range(rank)):
        return None
    return tuple(position[f"d{i}"] for i in range(rank))


def _split_groups(view: Op, index: Index, sizes: Sequence[Expr], ranges: Ranges) -> Index:
    """Index of the side with more dims: each dim of the other side spreads over its reassociation group."""
    groups = view.attributes["groups"]
    if not groups:  # rank 0 on one side: every dim of the other is a unit dim
        return (const(0),) * len(sizes)
    found: list[Expr] = []
    for position, group in zip(index, groups, strict=True):
        found.extend(delinearize(position, [sizes[i] for i in group], ranges))
    return tuple(found)


def chain(tensor: Tensor) -> tuple[Tensor, list[Op]]:
    """The tensor that a chain of views starts from, and the views from it to ``tensor``, in order."""
    views: list[Op] = []
    while tensor.producer is not None and tensor.producer.is_view:
        views.append(tensor.producer)
        tensor = tensor.producer.operands[0]
    return tensor, views[::-1]


def source_index(views: Sequence[Op], index: Index, ranges: Ranges) -> Index:
    """``backward`` through a whole chain."""
    for view in reversed(views):
        index = backward(view, index, ranges)
    return index


def readers(tensor: Tensor) -> list[Op]:
    """Operations that read a tensor, directly or through views (a view of it is reported as itself when it is read)."""
    found: list[Op] = []
    for op in tensor.users:
        if op.is_view:
            found.extend(readers(op.results[0]))
        elif op not in found:
            found.append(op)
    return found
