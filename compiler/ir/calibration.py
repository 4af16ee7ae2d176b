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

    ``absmax``, ``mean_square``: [channels]; ``sample``: [rows, channels], rows spread over the batches; ``rows``: how many
    rows (tokens, pixels) the first two are taken over. ``weight_absmax``, ``weight_mean_square``: [output channels].
    """

    absmax: Floats
    mean_square: Floats
    sample: Floats
    rows: int
    weight_absmax: Floats
    weight_mean_square: Floats


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
