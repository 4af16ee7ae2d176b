"""Predicting latencies by three models of one target: its median, and a low and a high quantile around it.

The target is the logarithm of a call's time over what the roofline says of it: so trees learn how far from the roof kernels of a kind
are, and sizes that no trace had scale as the roof does.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from effc.compiler.ir.candidate import Latency
from effc.compiler.ir.errors import OptionError
from effc.costmodel import features
from effc.costmodel.hardware import Hardware
from effc.costmodel.model.dataset import roof_seconds

#: Of the target's distribution, by the name of the model.
QUANTILES = {"low": 0.1, "median": 0.5, "high": 0.9}
#: Half the width of the likely range, as a share, from which on a prediction is unsure, and the safe choice should be taken.
UNSURE = 0.35


@dataclass(frozen=True)
class Predictor:
    """``boosters``: LightGBM models, by the names of `QUANTILES`."""

    boosters: dict[str, Any]

    def latencies(
        self, kernels: Iterable[features.Kernel], hardware: Hardware, threads: int, workers: int = 1
    ) -> list[Latency]:
        """Of calls with so many threads; ``uncertainty`` as `Latency` has it, 0.1 to 0.9 of the likely times. ``workers``: threads that
        predict.
        """
        rows = features.matrix(kernels, hardware, threads)
        if not len(rows):
            return []
        low, median, high = self.seconds(rows, workers)
        return [Latency(float(m), float((h - s) / (2 * m))) for s, m, h in zip(low, median, high, strict=True)]

    def seconds(
        self, rows: NDArray[np.float32], workers: int = 1
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Low, median and high time of each row of features, in this order."""
        roof = roof_seconds(rows)
        found = [roof * np.exp2(self.boosters[name].predict(rows, num_threads=workers)) for name in QUANTILES]
        low, median, high = found
        return np.minimum(low, median), median, np.maximum(high, median)


def unsure(latency: Latency) -> bool:
    """Whether a prediction says too little to act on it."""
    return latency.uncertainty > UNSURE


def library() -> Any:
    """LightGBM; OptionError where it is not installed."""
    try:
        import lightgbm
    except ImportError:
        raise OptionError("the learned cost model needs LightGBM: pip install 'effc[costmodel]'") from None
    return lightgbm
