"""``Grid``: the scales and zero points between whose multiples a weight is rounded."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from effc.compiler.compress.quantized import DualScales, QuantizedWeight, ScaleCodes
from effc.compiler.compress.rounding import LEAST_SCALE
from effc.compiler.ir.quantization import Scheme


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
