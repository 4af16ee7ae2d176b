"""A calibration of a model whose channels are others: fewer, or in another order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from effc.compiler.ir.calibration import Calibration, Statistics

#: Which there are now: by number, or as a mask of those there were.
Channels = NDArray[np.int64] | NDArray[np.bool_]


def with_channels(calibration: Calibration, out: Mapping[str, Channels], met: Mapping[str, Channels]) -> Calibration:
    """``out``, ``met``: by weight, the output and input channels that it has now, where they changed."""
    sites = {name: _taken(s, out.get(name), met.get(name)) for name, s in calibration.sites.items()}
    return replace(calibration, sites=sites)


def _taken(s: Statistics, out: Channels | None, met: Channels | None) -> Statistics:
    if out is not None:
        shown = None if s.sensitivity is None else s.sensitivity[out]
        s = replace(
            s, weight_absmax=s.weight_absmax[out], weight_mean_square=s.weight_mean_square[out], sensitivity=shown
        )
    if met is None or len(met) != len(s.least):
        return s
    by_channel = {f: getattr(s, f)[met] for f in ("least", "greatest", "mean", "mean_square")}
    moment = None if s.second_moment is None else s.second_moment[met][:, met]
    windows = None if s.windows is None else s.windows[:, met]
    effects = None if s.effects is None else s.effects[:, met]
    return replace(s, **by_channel, sample=s.sample[:, met], second_moment=moment, windows=windows, effects=effects)
