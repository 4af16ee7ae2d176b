"""Scales in two grains (Zhang et al., "Dual Grained Quantization: Efficient Fine-Grained Quantization for LLM", 2023): that of a group is a
small integer times that of its channel. Codes times the integers are bytes, so a sum with bytes of activations is one of integers over all
groups, scaled once at its end.

The search has the paper's two phases: the range of each group first (`clipping`), then the channel's scale. Only here are the integers
chosen by the error that they leave, the next below or above, and bounded for each group by what keeps its bytes within 127.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from effc.compiler.compress.grid import Grid
from effc.compiler.compress.nearest import nearest
from effc.compiler.compress.quantized import DualScales
from effc.compiler.compress.rounding import LEAST_SCALE

#: The largest magnitude of a weight's byte, as of a symmetric one.
_MOST = 127
#: The channel scales that are tried, over the least for which no group's integer would be too large. Smaller ones clip.
_SHARES = tuple(0.8 + 0.05 * i for i in range(17))


def dual_grained(weight: Tensor, grid: Grid, importance: Tensor | None = None) -> Grid:
    """``grid`` with scales of two grains (its ``dual``), near its own; zero points are kept: the range moves with the scale.

    Of 17 channel scales the one with which ``weight``, float32 ``[out, in]``, rounded to the nearest, has the least squared error, weighted
    by ``importance`` ``[in]``. Any code of the scheme less the group's zero point, times the group's integer, is within -127 to 127.
    """
    low, high = grid.scheme.limits
    zeros = torch.zeros_like(grid.scales) if grid.zeros is None else grid.zeros.float()
    most = (_MOST / torch.maximum(high - zeros, zeros - low)).floor()
    unit = (grid.scales / most).amax(1, keepdim=True).clamp(min=LEAST_SCALE)
    best = DualScales(torch.ones_like(most, dtype=torch.int8), unit)
    least = torch.full_like(unit, torch.inf)
    for share in _SHARES:
        channels = (unit * share).clamp(min=LEAST_SCALE)
        ratios = grid.scales / channels
        below, above = (
            DualScales(whole.clamp(min=1).minimum(most).to(torch.int8), channels)
            for whole in (ratios.floor(), ratios.ceil())
        )
        errors = [_errors(weight, _with(grid, tried), unit, importance) for tried in (below, above)]
        groups = torch.where(errors[0] <= errors[1], below.groups, above.groups)
        error = torch.minimum(*errors).sum(1, keepdim=True)
        better = error < least
        best = DualScales(torch.where(better, groups, best.groups), torch.where(better, channels, best.channels))
        least = torch.minimum(error, least)
    return _with(grid, best)


def _with(grid: Grid, dual: DualScales) -> Grid:
    return replace(grid, scales=dual.scales(), dual=dual)


def _errors(weight: Tensor, grid: Grid, unit: Tensor, importance: Tensor | None) -> Tensor:
    """Squared errors of groups ``[out, groups]``, in ``unit`` ``[out, 1]``, so that the squares are finite."""
    difference = (nearest(weight, grid).stored() - weight) / unit
    squares = difference.square_() if importance is None else difference.square_().mul_(importance)
    return squares.reshape(*grid.scales.shape, -1).sum(2)
