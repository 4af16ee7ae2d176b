"""Thresholds from the activations of calibration."""

from __future__ import annotations

import torch
from torch import Tensor


def cats(activated: Tensor, share: float) -> Tensor:
    """The threshold, float32 ``[]``, that a share of the magnitudes ``[rows, channels]`` does not exceed (Lee et al. 2024, section 4.1)."""
    values = activated.abs().flatten()
    return values.kthvalue(max(round(share * len(values)), 1)).values


def chess(activated: Tensor, up: Tensor, share: float) -> Tensor:
    """Thresholds, float32 ``[channels]``, so that a share of ``|activated| E|up|``, ``[rows, channels]``, does not exceed one number (He et
    al. 2024, section 4.1). Of a channel in which ``up`` is always zero it is infinity.
    """
    means = up.abs().mean(0)
    limit = cats(activated * means, share)
    return torch.where(means > 0, limit / means, torch.inf)
