"""Padding, cropping, and writing a slice into a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from effc.compiler.capture.importer.builder import Builder
from effc.compiler.capture.importer.registry import Op, lowers
from effc.compiler.capture.importer.shapes import clamp_index, extract_slice, unsqueeze, wrap
from effc.compiler.capture.importer.types import Size, Tensor, is_empty, simplify, tensor_type
from effc.compiler.ir.errors import UnsupportedError
from effc.compiler.ir.expr import as_expr


def pad(b: Builder, x: Tensor, low: Sequence[Size], high: Sequence[Size], value: int | float | bool) -> Tensor:
    """``x`` with ``low`` / ``high`` elements of ``value`` around each dimension; a negative width crops."""
    for d in range(x.rank):
        cut_low, cut_high = _cut(low[d]), _cut(high[d])
        if cut_low or cut_high:
            x = extract_slice(b, x, d, cut_low, simplify(as_expr(x.sizes[d]) - cut_low - cut_high))
    low, high = [_grow(v) for v in low], [_grow(v) for v in high]
    if all(v == 0 for v in (*low, *high)):
        return x
    sizes = tuple(simplify(as_expr(s) + p + q) for s, p, q in zip(x.sizes, low, high, strict=True))
    if is_empty(sizes) or is_empty(x.sizes):
        return b.fill(value, x.dtype, sizes)
    fill = b.constant(value, x.dtype)
    indices = ", ".join(f"{b.fresh()}: index" for _ in range(x.rank))
    text = (
        f"tensor.pad {x.name} low{b.mixed(low)} high{b.mixed(high)} {{\n    ^bb0({indices}):\n"
        f"      tensor.yield {fill.name} : {fill.type} loc({b.location})\n"
        f"    }} : {x.type} to {tensor_type(x.dtype, sizes)}"
    )
    return Tensor(b.emit(text), x.dtype, sizes)


def _cut(width: Size) -> int:
    return -width if isinstance(width, int) and width < 0 else 0


def _grow(width: Size) -> Size:
    return max(width, 0) if isinstance(width, int) else width


def insert_slice(
    b: Builder, source: Tensor, target: Tensor, offsets: Sequence[Size], sizes: Sequence[Size], strides: Sequence[Size]
) -> Tensor:
    """``target`` with ``source`` written at ``offsets`` by ``strides``."""
    if is_empty(source.sizes):
        return target
    text = (
        f"tensor.insert_slice {source.name} into {target.name}{b.mixed(offsets)} {b.mixed(sizes)} {b.mixed(strides)} "
        f": {source.type} into {target.type}"
    )
    return Tensor(b.emit(text), target.dtype, target.sizes)


@lowers("aten.constant_pad_nd.default")
def _constant_pad(op: Op, x: Tensor, widths: list[Size], value: Any = 0) -> Tensor:
    pairs = list(zip(widths[::2], widths[1::2], strict=True))[::-1]
    pairs = [(0, 0)] * (x.rank - len(pairs)) + pairs
    return pad(op.b, x, [p[0] for p in pairs], [p[1] for p in pairs], value)


@lowers("aten.slice_scatter.default")
def _slice_scatter(
    op: Op, x: Tensor, source: Tensor, dim: int = 0, start: Size | None = None, end: Size | None = None, step: Size = 1
) -> Tensor:
    dim = wrap(dim, x.rank)
    if not isinstance(step, int):
        raise UnsupportedError(f"a slice with the symbolic step {step}")
    first = clamp_index(start, x.sizes[dim], 0)
    offsets: list[Size] = [first if d == dim else 0 for d in range(x.rank)]
    strides: list[Size] = [step if d == dim else 1 for d in range(x.rank)]
    return insert_slice(op.b, op.b.cast(source, x.dtype), x, offsets, source.sizes, strides)


@lowers("aten.select_scatter.default")
def _select_scatter(op: Op, x: Tensor, source: Tensor, dim: int, index: Size) -> Tensor:
    dim = wrap(dim, x.rank)
    source = unsqueeze(op.b, op.b.cast(source, x.dtype), dim)
    offsets: list[Size] = [clamp_index(index, x.sizes[dim], 0) if d == dim else 0 for d in range(x.rank)]
    return insert_slice(op.b, source, x, offsets, source.sizes, [1] * x.rank)
