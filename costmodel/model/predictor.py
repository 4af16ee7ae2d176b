"""Predicting by trees: a call's time with its likely range, and what the code of a kernel will be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from effc.compiler.ir.candidate import Latency
from effc.costmodel import features
from effc.costmodel.hardware import Hardware
from effc.costmodel.model.dataset import CODE, counted_instructions, counted_seconds
from effc.costmodel.model.targets import CORRECTION, LATENCY, QUANTILES, TARGETS
from effc.costmodel.model.trees import Forest, predictions

Array = NDArray[np.float64]

#: Half the width of the likely range, as a share, from which on a prediction is unsure, and the safe choice should be taken.
UNSURE = 0.35
#: Distance of an end of the range from the median, as a logarithm to base 2, at least.
_NARROWEST = 0.03


@dataclass(frozen=True)
class Predictor:
    """``texts``: LightGBM's of each target; ``forests``: read from them. ``widening``: how many times as wide as the trees say the likely
    range is, by what they said of families held out.
    """

    texts: Mapping[str, str]
    forests: Mapping[str, Forest]
    widening: float = 1.0

    @staticmethod
    def of(texts: Mapping[str, str], widening: float = 1.0) -> Predictor:
        """ValueError: a text is not one of trees over our features, or the time is not among the targets."""
        forests = {}
        for name, text in texts.items():
            forests[name] = Forest.parse(text)
            if name not in (*TARGETS, CORRECTION) or forests[name].features != features.COLUMNS:
                raise ValueError(f"{name}: trees for another target, or of other features")
        return Predictor(texts, forests, widening)

    def widened(self, factor: float) -> Predictor:
        return replace(self, widening=factor)

    def latencies(self, kernels: Iterable[features.Kernel], hardware: Hardware, threads: int) -> list[Latency]:
        """Of calls with so many threads; ``uncertainty`` as `Latency` has it, 0.1 to 0.9 of the likely times."""
        low, median, high = self.seconds(features.matrix(kernels, hardware, threads))
        return [Latency(float(m), float((h - s) / (2 * m))) for s, m, h in zip(low, median, high, strict=True)]

    def seconds(self, rows: NDArray[np.float32]) -> tuple[Array, Array, Array]:
        """Low, median and high time of each row of features, in this order."""
        counted = counted_seconds(rows)
        if CORRECTION in self.forests:
            counted = counted * np.exp2(self.forests[CORRECTION].predict(rows))
        low, median, high, again = predictions([self.forests[name] for name in LATENCY], rows)
        median = (median + again) / 2
        down, up = (self.widening * np.maximum(side, _NARROWEST) for side in (median - low, high - median))
        return counted * np.exp2(median - down), counted * np.exp2(median), counted * np.exp2(median + up)

    def code(self, rows: NDArray[np.float32]) -> dict[str, Array]:
        """What is known of the code of each row: ``instructions``, ``code_bytes``, ``vector_share``, and the chance of any ``spills``."""
        found = {name: forest.predict(rows) for name, forest in self.forests.items() if name in CODE}
        for name in found.keys() & {"instructions", "code_bytes"}:
            found[name] = counted_instructions(rows) * np.exp2(found[name])
        if "spills" in found:
            found["spills"] = 1 / (1 + np.exp(-found["spills"]))
        return found


def unsure(latency: Latency) -> bool:
    """Whether a prediction says too little to act on it."""
    return latency.uncertainty > UNSURE


def widening(actual: Array, low: Array, median: Array, high: Array) -> float:
    """How many times as wide as it is the range ``low`` to ``high`` must be to hold as many times as its quantiles promise; all in
    seconds.
    """
    side = np.where(actual > median, np.log2(high / median), np.log2(median / low))
    distances = np.abs(np.log2(actual / median)) / np.maximum(side, _NARROWEST)
    promised = QUANTILES["latency.high"] - QUANTILES["latency.low"]
    return float(np.quantile(distances, promised))
