"""Statistics of rounds: medians, with the 20th and 80th percentile around them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """The median of all rounds, and the 20th and 80th percentile."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(samples: Sequence[float]) -> Spread:
        """From one or more samples; of one, all three are it."""
        if len(samples) == 1:
            return Spread(samples[0], samples[0], samples[0])
        fifths = statistics.quantiles(samples, n=5, method="inclusive")
        return Spread(statistics.median(samples), fifths[0], fifths[3])

    @staticmethod
    def of_ratios(numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
        """Of the ratios round by round, in which what slows a whole round cancels."""
        return Spread.of([n / d for n, d in zip(numerators, denominators, strict=True)])


def geometric_mean(values: Sequence[float]) -> float:
    """Of one or more positive values."""
    return statistics.geometric_mean(values)
