"""``QuantizedWeight``: codes, scales and zero points of a weight, and what they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from effc.compiler.compress.activations import held
from effc.compiler.compress.form import Form
from effc.compiler.compress.inputs import Inputs, by_channel
from effc.compiler.ir.quantization import Scheme


@dataclass(frozen=True, eq=False)
class ScaleCodes:
    """Scales ``[out, groups]`` in int8: ``mean + code * block_scale``, blocks of ``block`` scales in order, the last one maybe shorter.

    ``codes``: int8 ``[out, groups]``; ``block_scales``: float32 ``[ceil(out * groups / block)]``; ``mean``: float32 ``[]``.
    """

    codes: Tensor
    block_scales: Tensor
    mean: Tensor
    block: int

    def scales(self) -> Tensor:
        """Float32 ``[out, groups]``."""
        spread = self.block_scales.repeat_interleave(self.block)[: self.codes.numel()]
        return self.mean + self.codes.float() * spread.reshape(self.codes.shape)


@dataclass(frozen=True, eq=False)
class DualScales:
    """Scales ``[out, groups]`` in two grains: ``groups`` int8 ``[out, groups]``, 1 or more, times ``channels`` float32 ``[out, 1]``."""

    groups: Tensor
    channels: Tensor

    def scales(self) -> Tensor:
        """Float32 ``[out, groups]``."""
        return self.groups.float() * self.channels


@dataclass(frozen=True, eq=False)
class QuantizedWeight(Form):
    """A weight ``[out, in…]`` by ``scheme``, its dimensions behind the first flattened to ``in``.

    ``codes``: int8 ``[out, in]``, within ``scheme.limits``; ``scales``: float32 ``[out, groups]``, positive and finite; ``zeros``: int8
    ``[out, groups]``, within the limits, None where ``scheme`` is symmetric. ``smoothing``: float32 ``[in]``, positive, by which the
    weight was multiplied before and activations are divided; None where it is 1. ``scale_codes``: what ``scales`` are made of where
    ``scheme.scales`` is ``"double"``. ``dual``: likewise where it is ``"dual"``; then any code less its zero point, times the group's
    integer, lies within -127 to 127.
    """

    scheme: Scheme
    codes: Tensor
    scales: Tensor
    zeros: Tensor | None = None
    smoothing: Tensor | None = None
    scale_codes: ScaleCodes | None = None
    dual: DualScales | None = None

    def stored(self) -> Tensor:
        """What codes stand for: float32 ``[out, in]``, ``(code - zero) * scale``, smoothing still in it."""
        out, size = self.codes.shape
        groups = self.codes.reshape(out, self.scales.shape[1], -1)
        if self.scheme.codebook:
            values = torch.tensor(self.scheme.codebook)[groups.long()]
        else:
            values = groups.float() if self.zeros is None else groups.float() - self.zeros.float()[..., None]
        if self.dual is not None:
            return (values * self.dual.groups.float()[..., None]).reshape(out, size) * self.dual.channels
        return (values * self.scales[..., None]).reshape(out, size)

    def factors(self, channels: int) -> Tensor:
        """The smoothing by channel ``[channels]``, for every position of a window the same; ones where there is none."""
        return torch.ones(channels) if self.smoothing is None else self.smoothing.reshape(channels, -1)[:, 0]

    def parts(self) -> Mapping[str, Tensor]:
        parts = {"codes": self.codes}
        if self.dual is not None:
            parts |= {"group_scales": self.dual.groups, "channel_scales": self.dual.channels}
        elif self.scale_codes is None:
            parts["scales"] = self.scales
        else:
            found = self.scale_codes
            parts |= {"scale_codes": found.codes, "block_scales": found.block_scales, "mean_scale": found.mean}
        if self.zeros is not None:
            parts["zeros"] = self.zeros
        if self.scheme.codebook:
            parts["codebook"] = torch.tensor(self.scheme.codebook)
        if self.smoothing is not None:
            parts["smoothing"] = 1.0 / self.smoothing
        return parts

    @property
    def kind(self) -> str:
        return repr(self.scheme)

    def outputs(self, inputs: Inputs) -> Tensor:
        smoothed = inputs.over(self.factors(inputs.channels))
        return held(smoothed.sample, self.scheme, smoothed) @ by_channel(self.stored(), inputs.channels).T

    def dense(self) -> Tensor:
        return self.stored() if self.smoothing is None else self.stored() / self.smoothing
