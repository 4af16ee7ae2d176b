"""``Calibration``: what a model did on a few batches, for planning. ``effc.calibrate`` makes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Statistics:
    """Of the activations that meet one weight, by input channel (the dimension that the weight sums over).

    ``least``, ``greatest``, ``mean``, ``mean_square``: [channels]; ``second_moment``: [channels, channels], the mean of ``x xᵀ``, None
    where it was not kept; ``rows``: how many rows (tokens, pixels) these are taken over. ``sample``: [rows, channels], some rows, spread
    over the batches. ``weight_absmax``, ``weight_mean_square``: [output channels].
    ``sensitivity``: [output channels], squares of the gradient of a row of the model's output by the layer's, as ``effc.calibrate`` says,
    summed over the layer's rows; the mean over rows of the model's output. None where it was not measured.
    ``windows``: [rows, channels, window…], what some positions of a convolution's output are sums over, padding as zeros; None of what has
    no window of several positions.
    ``effects``: [samples, channels], what the model's output shows, to first order, of each channel with its mean in its place: the
    gradient times the activation less its mean, summed over the positions of a sample of the batches. None where samples were not told
    apart, or no gradients measured.

    Weights that met the same activations have the same arrays of them, not copies.
    """

    least: Floats
    greatest: Floats
    mean: Floats
    mean_square: Floats
    sample: Floats
    second_moment: Floats | None
    rows: int
    weight_absmax: Floats
    weight_mean_square: Floats
    sensitivity: Floats | None = None
    windows: Floats | None = None
    effects: Floats | None = None

    @property
    def absmax(self) -> Floats:
        """[channels]."""
        return np.maximum(-self.least, self.greatest)


@dataclass(frozen=True, eq=False)
class Calibration:
    """``sites``: statistics by parameter name. ``batches``: (args, kwargs) of each call, ``outputs``: what the model gave in
    eager; both are torch values, which only the whole model's verification looks at. ``model``: digest of the model's weights.

    Two calibrations are equal where ``digest``, of all of the content, is.
    """

    model: str
    sites: Mapping[str, Statistics]
    batches: tuple[tuple[tuple[Any, ...], Mapping[str, Any]], ...]
    outputs: tuple[Any, ...]
    digest: str

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Calibration) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Calibration({len(self.batches)} batches, {len(self.sites)} sites, digest {self.digest[:12]})"
