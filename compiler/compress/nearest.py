"""Round-to-nearest: each element takes the code nearest to it (Jacob et al., "Quantization and Training of Neural Networks for
Efficient Integer-Arithmetic-Only Inference", CVPR 2018, section 2.1; for NF4 the nearest number of the codebook).
"""

from __future__ import annotations

import torch
from torch import Tensor

from effc.compiler.compress.grid import Grid
from effc.compiler.compress.quantized import QuantizedWeight
from effc.compiler.compress.rounding import codes_of


def nearest(weight: Tensor, grid: Grid) -> QuantizedWeight:
    """``weight``: float32 ``[out, in]``, ``in`` a multiple of the grid's groups. Values outside the grid take its ends."""
    groups = weight.reshape(*grid.scales.shape, -1)
    zeros = None if grid.zeros is None else grid.zeros.float()[..., None]
    codes = codes_of(grid.scheme, groups, grid.scales[..., None], zeros)
    return grid.quantized(codes.to(torch.int8).reshape(weight.shape))
