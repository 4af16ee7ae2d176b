"""``Calibration``: what a model did on a few batches, for planning. ``effc.calibrate`` makes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
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
    """``batches``: (args, kwargs) of each call, ``outputs``: what the model gave in eager; both are torch values, which only the whole
    model's verification looks at. The last ``held_out`` of them are there to judge by what the others have made: ``sites``, statistics by
    parameter name, are of the others, ``unseen`` are of the batches held out, without second moments. ``model``: digest of the model's
    weights.

    Two calibrations are equal where ``digest``, of all of the content, is.
    """

    model: str
    sites: Mapping[str, Statistics]
    batches: tuple[tuple[tuple[Any, ...], Mapping[str, Any]], ...]
    outputs: tuple[Any, ...]
    digest: str
    held_out: int = 0
    unseen: Mapping[str, Statistics] = field(default_factory=dict)

    @property
    def seen(self) -> int:
        """How many of the batches, the first ones, ``sites`` are of."""
        return len(self.batches) - self.held_out

    def judging(self) -> Calibration:
        """What errors of forms are told by: with ``sites`` of the batches held out, where these met a weight, but for the range, by which
        forms hold activations.
        """
        met = {
            name: replace(s, least=seen.least, greatest=seen.greatest) if (seen := self.sites.get(name)) else s
            for name, s in self.unseen.items()
        }
        return replace(self, sites={**self.sites, **met})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Calibration) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        batches = f"{len(self.batches)} batches, {self.held_out} of them held out"
        return f"Calibration({batches}, {len(self.sites)} sites, digest {self.digest[:12]})"
