"""Weights that a quantization must survive."""

from __future__ import annotations

import torch
from torch import Tensor

#: From zero and subnormals to nearly the largest that is accepted.
SIZES = [0.0, 1e-44, 1e-38, 1e-7, 1.0, 1e30]


def weight_of_size(size: float) -> Tensor:
    """Float32 ``[4, 12]``, at random within ``size`` of zero, but for row 1, which is zeros, and the first half of row 2, which is 1e-7."""
    weight = torch.randn(4, 12).clamp(-1, 1) * size
    weight[1] = 0
    weight[2, :6] = 1e-7
    return weight
