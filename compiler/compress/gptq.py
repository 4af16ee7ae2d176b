"""GPTQ's compensation (Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", ICLR 2023):
elements of a row are rounded one after the other, and those still to come take up the error that each leaves in the output.

Scales are found beforehand, on the weight as it is. So elements may go in any order whatever their group, here from the channel of the
largest second moment to that of the smallest (the paper's code calls it act-order), and codes still lie in the weight's own order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from effc.compiler.compress.grid import Grid
from effc.compiler.compress.inputs import Inputs, by_channel, by_element
from effc.compiler.compress.quantized import QuantizedWeight
from effc.compiler.compress.rounding import codes_of, values_of

#: Added to the second moments, as a share of their mean: the paper's.
_DAMPING = 0.01
#: Columns after which the rest of the weight is brought up to date, by one product; the paper's.
_BLOCK = 128


@dataclass(frozen=True, eq=False)
class Compensation:
    """``factor``: upper triangular ``[channels, channels]``, the Cholesky factor of the inverse of the second moments, its channels in
    ``order``. Row ``i`` tells how the channels after ``i`` make up for an error in it.
    """

    factor: Tensor
    order: Tensor

    @staticmethod
    def of(inputs: Inputs) -> Compensation:
        """Of channels that calibration saw at 0 no other makes up for the error: their weights are rounded to the nearest."""
        moment = inputs.moment.double()
        diagonal = moment.diagonal()
        mean = float(diagonal.mean()) or 1.0
        order = diagonal.argsort(descending=True)
        damped = moment + torch.diag(torch.where(diagonal > 0, _DAMPING * mean, mean))
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped[order][:, order]))
        return Compensation(torch.linalg.cholesky(inverse, upper=True).float(), order)


def compensated(weight: Tensor, grid: Grid, compensation: Compensation) -> QuantizedWeight:
    """``weight``: float32 ``[out, in]``; ``grid``: of this weight; smoothed weights with the compensation of smoothed inputs."""
    scheme, channels = grid.scheme, len(compensation.order)
    scales, zeros = (None if t is None else _columns(t, compensation) for t in grid.spread(weight.shape[1]))
    assert scales is not None
    rest, factor = _columns(weight, compensation), compensation.factor
    codes = torch.empty_like(rest)
    for start in range(0, channels, _BLOCK):
        stop = min(start + _BLOCK, channels)
        errors = torch.empty_like(rest[start:stop])
        for i in range(start, stop):
            zero = None if zeros is None else zeros[i]
            codes[i] = codes_of(scheme, rest[i], scales[i], zero)
            error = (rest[i] - values_of(scheme, codes[i], scales[i], zero)) / factor[i, i]
            rest[i + 1 : stop].addr_(factor[i, i + 1 : stop], error, alpha=-1)
            errors[i - start] = error
        rest[stop:].addmm_(factor[start:stop, stop:].T, errors, alpha=-1)
    ordered = torch.empty_like(codes)
    ordered[compensation.order] = codes
    return grid.quantized(by_element(ordered.T, len(weight)).to(torch.int8))


def _columns(matrix: Tensor, compensation: Compensation) -> Tensor:
    """``[out, in]`` as ``[channels, out * positions]``, channels in order: a channel's elements lie together."""
    return by_channel(matrix, len(compensation.order)).T[compensation.order].contiguous()
