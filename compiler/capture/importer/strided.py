"""``as_strided`` where the meaning does not depend on memory that the graph cannot see: over a contiguous tensor, inside it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.fx import Node

from effc.compiler.capture.importer.body import Body
from effc.compiler.capture.importer.registry import Op, lowers
from effc.compiler.capture.importer.shapes import reshape
from effc.compiler.capture.importer.types import Scalar, Size, Tensor, as_size, is_empty, numel, simplify
from effc.compiler.ir.errors import UnsupportedError
from effc.compiler.ir.expr import as_expr


@lowers("aten.as_strided.default", "aten.as_strided_copy.default")
def _as_strided(op: Op, x: Tensor, size: list[Size], stride: list[Size], offset: Size | None = None) -> Tensor:
    """The element at ``offset + sum(index * stride)`` of the input's storage, counted from the input's own first element."""
    source = op.node.args[0]
    assert isinstance(source, Node)
    meta: torch.Tensor = source.meta["val"]
    if tuple(as_size(s) for s in meta.stride()) != row_major(x.sizes):
        raise UnsupportedError("as_strided of a tensor that is not contiguous")
    start = simplify(as_expr(offset) - as_expr(as_size(meta.storage_offset()))) if offset is not None else 0
    if start == 0 and tuple(stride) == row_major(op.sizes) and numel(op.sizes) == numel(x.sizes):
        return reshape(op.b, x, op.sizes)
    if is_empty(op.sizes):
        return op.b.empty(x.dtype, op.sizes)
    static = [s for s in (start, *op.sizes, *stride, numel(x.sizes)) if isinstance(s, int)]
    if len(static) != 2 + 2 * len(stride):
        raise UnsupportedError("as_strided with symbolic sizes")
    first, *rest = static
    steps = list(zip(rest[: len(stride)], rest[len(stride) : -1], strict=True))
    if first < 0 or first + sum((n - 1) * s for n, s in steps) >= rest[-1]:
        raise UnsupportedError("as_strided beyond the tensor's own elements")
    flat = reshape(op.b, x, (rest[-1],))

    def read(body: Body) -> Scalar:
        at = body.size(first)
        for d, (_, step) in enumerate(steps):
            at = body.add(at, body.mul(body.loop_index(d), body.size(step)))
        return body.extract(flat, [at])

    return op.b.pointwise([], op.sizes, x.dtype, read)


def row_major(sizes: Sequence[Size]) -> tuple[Size, ...]:
    """Strides of a contiguous tensor, as torch gives them: a dimension of size 0 counts as 1."""
    strides: list[Size] = []
    step: Size = 1
    for s in reversed(sizes):
        strides.append(step)
        step = simplify(as_expr(step) * (1 if s == 0 else s))
    return tuple(reversed(strides))
