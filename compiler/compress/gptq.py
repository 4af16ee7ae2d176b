"""GPTQ's compensation (Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", ICLR 2023):
elements of a row are rounded one after the other, and those still to come take up the error that each leaves in the output.

Scales are found beforehand, on the weight as it is. So elements may go in any order whatever their group, here from the channel of the
largest second moment to that of the smallest (the paper's code calls it act-order), and codes still lie in the weight's own order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from effc.compiler.compress.compensation import Compensation
from effc.compiler.compress.grid import Grid
from effc.compiler.compress.quantized import QuantizedWeight
from effc.compiler.compress.rounding import codes_of, values_of


def compensated(weight: Tensor, grid: Grid, compensation: Compensation) -> QuantizedWeight:
    """``weight``: float32 ``[out, in]``; ``grid``: of this weight; smoothed weights with the compensation of smoothed inputs.

    Weights of channels that calibration saw at 0 are rounded to the nearest.
    """
    scheme = grid.scheme
    each_scale, each_zero = grid.spread(weight.shape[1])
    rest, scales = compensation.columns(weight), compensation.columns(each_scale)
    zeros = None if each_zero is None else compensation.columns(each_zero)
    codes = torch.empty_like(rest)

    def rounded(i: int) -> Tensor:
        zero = None if zeros is None else zeros[i]
        codes[i] = codes_of(scheme, rest[i], scales[i], zero)
        return values_of(scheme, codes[i], scales[i], zero)

    compensation.sweep(rest, rounded)
    return grid.quantized(compensation.matrix(codes, len(weight)).to(torch.int8))
