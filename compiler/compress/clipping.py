"""The range of a group of weights: its extremes, a percentile of it, or what rounds with the least squared error.

Percentiles: McKinstry et al., "Discovering Low-Precision Networks Close to Full-Precision Networks for Efficient Embedded
Inference", 2018. Least squared error: Shin et al., "Fixed-Point Performance Analysis of Recurrent Neural Networks", ICASSP 2016.
Weighted by the mean squares of the channels, it is AWQ's search for clipping (Lin et al., MLSys 2024) for inputs without correlation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from effc.compiler.compress.grid import Grid
from effc.compiler.compress.nearest import nearest
from effc.compiler.ir.quantization import Clipping, Scheme

#: The share of a group's elements that `by_percentile` keeps in range, each side, by bits of a code: finer grids gain less by clipping.
KEPT: Mapping[int, float] = {8: 0.9999, 4: 0.999, 2: 0.97}
#: The shares of the extremes that `by_error` tries: below 0.3 lie none of the best for normal weights, down to 2 bits.
_SHARES = tuple(1 - 0.05 * i for i in range(15))


def grid_of(weight: Tensor, scheme: Scheme, clipping: Clipping = "max", importance: Tensor | None = None) -> Grid:
    """The grid for ``weight``, float32 ``[out, in]``. ``importance``: of each element's squared error, ``[in]``; read by ``"mse"`` only."""
    return _RANGES[clipping](weight, scheme, importance)


def by_max(weight: Tensor, scheme: Scheme, importance: Tensor | None = None) -> Grid:
    """From the least to the greatest element: nothing is clipped."""
    return Grid.of(scheme, *_grouped(weight, scheme).aminmax(dim=-1))


def by_percentile(weight: Tensor, scheme: Scheme, importance: Tensor | None = None) -> Grid:
    """From the quantile ``1 - KEPT[bits]`` to ``KEPT[bits]``, interpolated; of symmetric ones, the latter of the magnitudes."""
    groups, kept = _grouped(weight, scheme), KEPT[scheme.bits]
    if scheme.symmetric:
        reach = _quantile(groups.abs(), kept)
        return Grid.of(scheme, -reach, reach)
    return Grid.of(scheme, -_quantile(-groups, kept), _quantile(groups, kept))


def by_error(weight: Tensor, scheme: Scheme, importance: Tensor | None = None) -> Grid:
    """The share of both extremes, of a grid of 15 from 1 to 0.3, whose rounding has the least squared error, group by group."""
    groups = _grouped(weight, scheme)
    least, greatest = groups.aminmax(dim=-1)
    weights = torch.ones(weight.shape[1]) if importance is None else importance
    best, share = torch.full_like(least, math.inf), torch.ones_like(least)
    for tried in _SHARES:
        difference = nearest(weight, Grid.of(scheme, least * tried, greatest * tried)).stored() - weight
        error = difference.square_().mul_(weights).reshape(groups.shape).sum(-1)
        share = torch.where(error < best, tried, share)
        best = torch.minimum(error, best)
    return Grid.of(scheme, least * share, greatest * share)


_RANGES: Mapping[str, Callable[[Tensor, Scheme, Tensor | None], Grid]] = {
    "max": by_max,
    "percentile": by_percentile,
    "mse": by_error,
}


def _grouped(weight: Tensor, scheme: Scheme) -> Tensor:
    """``[out, groups, elements]``."""
    return weight.reshape(weight.shape[0], -1, scheme.group or weight.shape[1])


def _quantile(groups: Tensor, kept: float) -> Tensor:
    """The quantile ``kept`` of the last dimension. (`torch.quantile` takes 16 million elements at most.)"""
    place = (1 - kept) * (groups.shape[-1] - 1)
    largest = groups.topk(min(groups.shape[-1], math.floor(place) + 2), dim=-1).values
    return largest[..., math.floor(place)].lerp(largest[..., -1], place - math.floor(place))
