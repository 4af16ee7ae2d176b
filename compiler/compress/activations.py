"""Activations in 8 bits, as a scheme holds them: by row as the model runs, or by one range from calibration."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from effc.compiler.compress.inputs import Inputs
from effc.compiler.compress.rounding import LEAST_SCALE, codes_of, values_of
from effc.compiler.ir.quantization import Scheme

_SYMMETRIC = Scheme()


def held(x: Tensor, scheme: Scheme, inputs: Inputs) -> Tensor:
    """What ``x`` ``[…, channels]`` stands for when ``scheme`` holds it; ``inputs``: its calibration, which only ``"tensor"`` reads."""
    if scheme.activations == "token":
        return by_token(x)
    if scheme.activations == "tensor":
        return ActivationRange.of(inputs.least, inputs.greatest).rounded(x)
    return x


def by_token(x: Tensor) -> Tensor:
    """``x`` ``[…, channels]`` rounded to int8 with a scale for each row, symmetric: rows of zeros stay zeros."""
    scales = (x.abs().amax(-1, keepdim=True) / _SYMMETRIC.limits[1]).clamp(min=LEAST_SCALE)
    return values_of(_SYMMETRIC, codes_of(_SYMMETRIC, x, scales, None), scales, None)


@dataclass(frozen=True)
class ActivationRange:
    """An activation as unsigned bytes: ``(byte - zero) * scale``, ``zero`` within 0 to 255."""

    scale: float
    zero: int

    @staticmethod
    def of(least: Tensor, greatest: Tensor) -> ActivationRange:
        """What holds all channels from ``least`` to ``greatest``, float32 ``[channels]``, and 0, which padding and ReLU need to be exact
        (Jacob et al. 2018, section 2.1).
        """
        low, high = min(float(least.min()), 0.0), max(float(greatest.max()), 0.0)
        scale = max(high - low, 1e-12) / 255
        return ActivationRange(scale, min(max(round(-low / scale), 0), 255))

    def rounded(self, x: Tensor) -> Tensor:
        """What ``x`` stands for as such bytes; values outside the range take its ends."""
        codes = (x / self.scale).round_().add_(self.zero).clamp_(0, 255)
        return codes.sub_(self.zero).mul_(self.scale)
