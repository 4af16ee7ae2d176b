"""Activations in int8, as a scheme holds them: by row as the model runs, or by one range from calibration."""

from __future__ import annotations

import torch
from torch import Tensor

from effc.compiler.compress.grid import LEAST_SCALE, Grid, codes_of, values_of
from effc.compiler.compress.inputs import Inputs
from effc.compiler.ir.quantization import Scheme

_SYMMETRIC, _ASYMMETRIC = Scheme(), Scheme(symmetric=False)


def held(x: Tensor, scheme: Scheme, inputs: Inputs) -> Tensor:
    """What ``x`` ``[…, channels]`` stands for when ``scheme`` holds it; ``inputs``: its calibration, which only ``"tensor"`` reads."""
    if scheme.activations == "token":
        return by_token(x)
    if scheme.activations == "tensor":
        return by_tensor(x, *static_range(inputs.least, inputs.greatest))
    return x


def by_token(x: Tensor) -> Tensor:
    """``x`` ``[…, channels]`` rounded to int8 with a scale for each row, symmetric: rows of zeros stay zeros."""
    scales = (x.abs().amax(-1, keepdim=True) / _SYMMETRIC.limits[1]).clamp(min=LEAST_SCALE)
    return values_of(_SYMMETRIC, codes_of(_SYMMETRIC, x, scales, None), scales, None)


def by_tensor(x: Tensor, scale: float, zero: int) -> Tensor:
    """``x`` rounded to int8 with one scale and zero point; values outside their range take its ends."""
    one, offset = torch.tensor(scale), torch.tensor(float(zero))
    return values_of(_ASYMMETRIC, codes_of(_ASYMMETRIC, x, one, offset), one, offset)


def static_range(least: Tensor, greatest: Tensor) -> tuple[float, int]:
    """Scale and zero point of int8 that hold all channels from ``least`` to ``greatest``, float32 ``[channels]``, and 0."""
    grid = Grid.of(_ASYMMETRIC, least.min().reshape(1, 1), greatest.max().reshape(1, 1))
    assert grid.zeros is not None
    return float(grid.scales), int(grid.zeros)
