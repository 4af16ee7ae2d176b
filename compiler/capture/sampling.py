"""``grid_sample`` over two and three spatial dimensions, written in pointwise ops and reads as ATen's kernels compute it.

torch's own decomposition gives a place outside the image the weight 0; eager takes the value for 0 instead. They differ where
the image holds negative or infinite numbers: ``-1 * 0`` is a negative zero, ``inf * 0`` is NaN.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch._decomp.decompositions import pw_cast_for_opmath

_aten = torch.ops.aten
_ZEROS, _BORDER = 0, 1  # padding modes; 2 reflects
_BILINEAR, _NEAREST = 0, 1  # interpolation modes; 2 is bicubic
#: The cubic convolution's parameter (Keys, 1981) in ATen: UpSample.h.
_CUBIC = -0.75


@pw_cast_for_opmath
def grid_sampler(x: Tensor, grid: Tensor, mode: int, padding: int, align_corners: bool) -> Tensor:
    """``x`` [n, c, in…] read at ``grid`` [n, out…, d] (the last dimension's coordinate first) -> [n, c, out…]."""
    sizes = x.shape[2:]
    raw = [grid[..., -1 - d].unsqueeze(1) for d in range(len(sizes))]
    places = [_unnormalize(c, s, align_corners) for c, s in zip(raw, sizes, strict=True)]
    if mode in (_BILINEAR, _NEAREST):
        places = [_padded(c, s, padding, align_corners) for c, s in zip(places, sizes, strict=True)]
    if mode == _NEAREST:
        return _read(x, [c.round() for c in places])
    if mode == _BILINEAR:
        return _linear(x, places)
    return _cubic(x, places, lambda c, d: _padded(c, sizes[d], padding, align_corners))


def _unnormalize(c: Tensor, size: Any, align_corners: bool) -> Tensor:
    """[-1, 1] to [0, size - 1], or to [-1/2, size - 1/2], with one rounding less than ATen's ``(c + 1) * scale - 1/2``."""
    scale: Any = (size - 1 if align_corners else size) / 2
    place: Tensor = c * scale + (size - 1) / 2
    return place


def _padded(c: Tensor, size: Any, padding: int, align_corners: bool) -> Tensor:
    if padding == _ZEROS:
        return c
    if padding != _BORDER:
        c = _reflect(c, 0.0 if align_corners else -0.5, size - 1 if align_corners else size)
    return torch.clamp(torch.where(c > 0, c, 0), max=size - 1)  # NaN reads the first element, as in eager


def _reflect(c: Tensor, low: float, span: Any) -> Tensor:
    """Folded into [low, low + span]."""
    if isinstance(span, int) and span == 0:
        return torch.zeros_like(c)
    distance = (c - low).abs()
    extra = torch.fmod(distance, span)
    flips = (distance / span).floor()
    even = torch.fmod(flips, 2) == 0
    return torch.where(even, extra + low, span - extra + low)


def _read(x: Tensor, places: Sequence[Tensor], weight: Tensor | None = None) -> Tensor:
    """Elements of ``x`` at whole coordinates [n, 1, out…], times ``weight``; 0 outside."""
    n, channels, *sizes = x.shape
    rank = len(sizes)
    pairs = list(zip(places, sizes, strict=True))
    inside = reduce(torch.logical_and, [t for c, s in pairs for t in (c >= 0, c < s)])
    at = [torch.where(inside, c, 0).to(torch.int64) for c, _ in pairs]
    rows = torch.arange(n, device=x.device).view(-1, *[1] * (rank + 1))
    columns = torch.arange(channels, device=x.device).view(-1, *[1] * rank)
    values: Tensor = _aten._unsafe_index(x, [rows, columns, *at])
    if weight is None:
        return torch.where(inside, values, 0)
    if rank == 3:  # ATen skips what is outside; over two dimensions it multiplies 0 by the weight, which may be NaN
        return torch.where(inside, values * weight, 0)
    return torch.where(inside, values, 0) * weight


def _linear(x: Tensor, places: Sequence[Tensor]) -> Tensor:
    """The weighted sum of the 2 or 4 or 8 neighbours."""
    below = [c.floor() for c in places]
    far = [c - b for c, b in zip(places, below, strict=True)]
    total: Tensor | None = None
    for corner in itertools.product((0, 1), repeat=len(places)):
        # ATen's weights begin with the last dimension's
        weight = reduce(torch.mul, [f if up else 1 - f for f, up in zip(far[::-1], corner[::-1], strict=True)])
        term = _read(x, [b + 1 if up else b for b, up in zip(below, corner, strict=True)], weight)
        total = term if total is None else total + term
    assert total is not None
    return total


def _cubic(x: Tensor, places: Sequence[Tensor], padded: Callable[[Tensor, int], Tensor]) -> Tensor:
    """The 4x4 neighbours; padding moves each of them, not the place itself."""
    (y, column) = places
    top, left = y.floor(), column.floor()
    rows = []
    for i in range(-1, 3):
        row = padded(top + i, 0)
        rows.append(_interpolate([_read(x, [row, padded(left + j, 1)]) for j in range(-1, 3)], column - left))
    return _interpolate(rows, y - top)


def _interpolate(values: Sequence[Tensor], t: Tensor) -> Tensor:
    """Cubic convolution through four equidistant values, ``t`` beyond the second."""
    a = _CUBIC

    def outer(d: Tensor) -> Tensor:
        return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a

    def inner(d: Tensor) -> Tensor:
        return ((a + 2) * d - (a + 3)) * d * d + 1

    weights = [outer(t + 1), inner(t), inner(1 - t), outer(2 - t)]
    first, *rest = [v * w for v, w in zip(values, weights, strict=True)]
    return reduce(torch.add, rest, first)
