"""Padding: elements between the rows of a buffer that nobody reads, so that its rows do not all fall into one set of a cache.

Rows a multiple of 4 KiB apart share one set of L1, of 8 or 12 lines: a register tile of 14 rows then misses L1 at every step of its
sums, and its epilogue at every row. A line more between rows spreads them over the sets and costs a line of memory a row. On Zen 4
(8 ways) the 1x1 convolutions of ResNet-50 that read or write 1024 channels went from 62-71 % of the peak to 90-93 %.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from effc.compiler.ir.expr import Expr, const, recombine, var
from effc.compiler.ir.spec import ITEM_SIZE
from effc.compiler.pipeline.graph import CONTRACTIONS, Op, Tensor
from effc.compiler.pipeline.views import readers, source_index

#: Rows are padded whose bytes are a multiple of this: half of the 4 KiB that the sets of L1 span (64 lines of 64 bytes), because a
#: convolution of stride 2 takes every other row (28 x 28 x 512 to 1024 channels: 67 % of the peak before, 90 % after).
CROWDING = 2048
#: Bytes of padding, one cache line: two lines were no faster.
PADDING = 64


def row_padding(tensor: Tensor, order: Sequence[int], multiplied: bool) -> int:
    """Elements to leave between the rows of ``tensor``, whose dims are stored in ``order``; 0 where its rows are to lie dense.

    ``multiplied``: a contraction writes it. Only contractions take many rows at once; a reader that takes the last dim as one with
    those before it needs it dense.
    """
    wide = [i for i in order if tensor.sizes[i].constant != 1]
    if len(wide) < 2 or not (multiplied or any(op.kind in CONTRACTIONS for op in readers(tensor))):
        return 0
    size, item = tensor.sizes[wide[-1]].constant, ITEM_SIZE[tensor.dtype]
    if not size or size * item % CROWDING:
        return 0
    padding = PADDING // item
    (dense, _), (padded, _) = arranged(tensor.sizes, order), arranged(tensor.sizes, order, padding)
    for views in _view_chains(tensor):
        if _linear(views, dense) and not _linear(views, padded):
            return 0
    return padding


def arranged(sizes: Sequence[Expr], order: Sequence[int], padding: int = 0) -> tuple[tuple[Expr, ...], Expr]:
    """Strides with the dims of ``order`` from outermost to innermost, ``padding`` elements behind each row of the last wide dim; and the
    elements that all of it takes.
    """
    strides = [const(1)] * len(sizes)
    step = const(1)
    for i in reversed(order):
        strides[i] = step
        step = step * sizes[i]
        if padding and sizes[i].constant != 1:
            step, padding = step + padding, 0
    return tuple(strides), step


def _view_chains(tensor: Tensor, before: tuple[Op, ...] = ()) -> Iterator[tuple[Op, ...]]:
    """The chains of views through which ``tensor`` is read."""
    for op in tensor.users:
        if op.is_view:
            yield from _view_chains(op.results[0], (*before, op))
    if before:
        yield before


def _linear(views: Sequence[Op], strides: Sequence[Expr]) -> bool:
    """Whether the last view's elements lie at an address that is linear in its index."""
    sizes = views[-1].results[0].sizes
    index = tuple(var(f"d{i}") for i in range(len(sizes)))
    at = source_index(views, index, {f"d{i}": size for i, size in enumerate(sizes)})
    address = const(0)
    for i, stride in zip(at, strides, strict=True):
        address = address + i * stride
    address = recombine(address)
    return all(address.coefficient(f"d{i}") is not None for i in range(len(sizes)))
