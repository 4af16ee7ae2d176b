"""``Grid``: the scales and zero points between whose multiples a weight is rounded."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from effc.compiler.compress.quantized import DualScales, QuantizedWeight, ScaleCodes
from effc.compiler.ir.quantization import Scheme

#: The least scale, float32's least normal number: a group of zeros, and one whose scale would be subnormal, have this one.
LEAST_SCALE = torch.finfo(torch.float32).tiny


@dataclass(frozen=True, eq=False)
class Grid:
    """``scales``: float32 ``[out, groups]``, positive and finite; ``zeros``: int8 ``[out, groups]``, None where ``scheme`` is symmetric."""

    scheme: Scheme
    scales: Tensor
    zeros: Tensor | None = None
    scale_codes: ScaleCodes | None = None
    dual: DualScales | None = None

    @staticmethod
    def of(scheme: Scheme, least: Tensor, greatest: Tensor) -> Grid:
        """The grid from ``least`` to ``greatest`` ``[out, groups]`` (widened to hold 0): symmetric ones reach the larger of the two
        magnitudes. Finite for any finite range; scales are at least `LEAST_SCALE`, zero points within the codes' limits.
        """
        least, greatest = least.clamp(max=0), greatest.clamp(min=0)
        low, high = scheme.limits
        if scheme.symmetric:
            reach = torch.maximum(-least, greatest)
            return Grid(scheme, (reach if scheme.codebook else reach / high).clamp(min=LEAST_SCALE))
        levels = high - low
        scales = (greatest / levels - least / levels).clamp(min=LEAST_SCALE)
        zeros = (low - (least / scales).round()).clamp(low, high)
        return Grid(scheme, scales, zeros.to(torch.int8))

    def spread(self, size: int) -> tuple[Tensor, Tensor | None]:
        """Scale and zero point (as a float) of each element: float32 ``[out, size]``."""
        times = size // self.scales.shape[1]
        zeros = None if self.zeros is None else self.zeros.float().repeat_interleave(times, 1)
        return self.scales.repeat_interleave(times, 1), zeros

    def quantized(self, codes: Tensor) -> QuantizedWeight:
        """``codes``: int8 ``[out, in]``."""
        return QuantizedWeight(
            self.scheme, codes, self.scales, self.zeros, scale_codes=self.scale_codes, dual=self.dual
        )


def codes_of(scheme: Scheme, values: Tensor, scales: Tensor, zeros: Tensor | None) -> Tensor:
    """The code nearest to each of ``values``, as a float; the three broadcast, zero points are floats. Ties of integers go to even."""
    relative = values / scales
    if scheme.codebook:
        book = torch.tensor(scheme.codebook)
        return torch.bucketize(relative.contiguous(), (book[1:] + book[:-1]) / 2).float()
    low, high = scheme.limits
    codes = relative.round_()
    return (codes if zeros is None else codes.add_(zeros)).clamp_(low, high)


def values_of(scheme: Scheme, codes: Tensor, scales: Tensor, zeros: Tensor | None) -> Tensor:
    """What ``codes``, floats of `codes_of`, stand for."""
    if scheme.codebook:
        return torch.tensor(scheme.codebook)[codes.long()] * scales
    return (codes if zeros is None else codes - zeros) * scales
