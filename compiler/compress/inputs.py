"""``Inputs``: the activations that meet some weights, as the algorithms read them.

A convolution's weight ``[out, channels, positions]`` is to them a linear one of ``out * positions`` rows: activations at two positions
of its window are taken as uncorrelated (`by_channel`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from effc.compiler.ir.calibration import Floats, Statistics
from effc.compiler.ir.errors import InputError

#: The mean of the squares of a sum over a sample is off by the root of 2 / samples: 18 % of 64.
_FEWEST_SAMPLES = 64


@dataclass(frozen=True, eq=False)
class Inputs:
    """By channel: ``least``, ``greatest``, ``mean`` ``[channels]``; ``sample`` ``[rows, channels]``; ``kept``: the mean of ``x xᵀ`` over
    all rows, ``[channels, channels]``, None where the sample stands for them. ``windows``: some whole ones of a convolution, ``[rows,
    channels, window…]``, None where there are none. All float32 and finite.
    """

    least: Tensor
    greatest: Tensor
    mean: Tensor
    sample: Tensor
    kept: Tensor | None
    windows: Tensor | None = None

    @staticmethod
    def of(statistics: Statistics, layer: str) -> Inputs:
        """InputError: NaN or infinity, named after ``layer``."""
        least, greatest = torch.from_numpy(statistics.least), torch.from_numpy(statistics.greatest)
        mean = torch.from_numpy(statistics.mean)
        sample, moment = torch.from_numpy(statistics.sample), statistics.second_moment
        kept = None if moment is None else torch.from_numpy(moment)
        windows = None if statistics.windows is None else torch.from_numpy(statistics.windows)
        found = Inputs(least, greatest, mean, sample, kept, windows)
        if not all(bool(t.isfinite().all()) for t in (least, greatest, mean, sample, kept) if t is not None):
            raise InputError(
                f"{layer}: the activations in calibration hold NaN or infinity: look at the batches and at the model in eager"
            )
        return found

    @cached_property
    def moment(self) -> Tensor:
        """The mean of ``x xᵀ``: float32 ``[channels, channels]``."""
        return self.sample.T @ self.sample / len(self.sample) if self.kept is None else self.kept

    @property
    def channels(self) -> int:
        return len(self.least)

    @property
    def absmax(self) -> Tensor:
        return torch.maximum(-self.least, self.greatest)

    @property
    def mean_square(self) -> Tensor:
        return self.moment.diagonal()

    def over(self, smoothing: Tensor) -> Inputs:
        """Divided by ``smoothing``, float32 ``[channels]``, positive."""
        kept = None if self.kept is None else self.kept / smoothing / smoothing[:, None]
        least, greatest, mean = (t / smoothing for t in (self.least, self.greatest, self.mean))
        windows = None if self.windows is None else (self.windows.movedim(1, -1) / smoothing).movedim(-1, 1)
        return Inputs(least, greatest, mean, self.sample / smoothing, kept, windows)

    def error(self, difference: Tensor) -> float:
        """The mean of ``||x differenceᵀ||²`` over rows of activations: what a weight that is off by ``difference``, float32
        ``[out, in]``, changes in its output.
        """
        by = by_channel(difference, self.channels)
        return float(((by @ self.moment) * by).sum(dtype=torch.float64))


def check_fit(statistics: Statistics, layer: str, out: int, channels: int) -> None:
    """InputError: ``statistics`` are not of a weight called ``layer`` of ``out`` output channels that meets ``channels``."""
    sensitivity = statistics.sensitivity
    for kind, known, size in (("", statistics.least, channels), (" output", sensitivity, out)):
        if known is not None and len(known) != size:
            raise InputError(
                f"{layer}: its calibration has {len(known)}{kind} channels and the weight {size}: calibrate this model"
            )


def sensitivity_of(statistics: Statistics | None, layer: str) -> Tensor | None:
    """What errors of the outputs of ``layer`` count, float64 ``[out]``; None where that is not known, or the model's output shows none of
    them. InputError: NaN or infinity.
    """
    if statistics is None or statistics.sensitivity is None:
        return None
    found = _finite(statistics.sensitivity, layer)
    return found if bool(found.any()) else None


def effects_of(statistics: Statistics | None, layer: str) -> Tensor | None:
    """What the model's output shows of each channel that meets ``layer``, float64 ``[samples, channels]``; None where that is not known, or
    of too few samples. InputError: NaN or infinity.
    """
    if statistics is None or statistics.effects is None or len(statistics.effects) < _FEWEST_SAMPLES:
        return None
    return _finite(statistics.effects, layer)


def _finite(gradients: Floats, layer: str) -> Tensor:
    found = torch.from_numpy(gradients).double()
    if not bool(found.isfinite().all()):
        raise InputError(
            f"{layer}: the gradients in calibration hold NaN or infinity: look at the batches and at the model in eager"
        )
    return found


def by_channel(matrix: Tensor, channels: int) -> Tensor:
    """``[out, channels * positions]`` as ``[out * positions, channels]``."""
    return matrix.reshape(len(matrix), channels, -1).transpose(1, 2).reshape(-1, channels)


def by_element(rows: Tensor, out: int) -> Tensor:
    """The inverse of `by_channel`: ``[out, channels * positions]``."""
    return rows.reshape(out, -1, rows.shape[1]).transpose(1, 2).reshape(out, -1)
