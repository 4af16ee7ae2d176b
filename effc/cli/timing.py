"""Timing rivals fairly on a machine that others use too: in turn, many rounds, medians with their spread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Latency:
    """Seconds a call: the median of all rounds, and the quartiles around it."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(seconds: list[float]) -> Latency:
        """From two or more samples."""
        low, median, high = statistics.quantiles(seconds, n=4)
        return Latency(median, low, high)


def race(rivals: Mapping[str, Callable[[], Any]], rounds: int) -> Iterator[dict[str, float]]:
    """Each round yields the seconds of one call of every rival; who goes first changes from round to round."""
    names = list(rivals)
    for i in range(rounds):
        turn = i % len(names)
        seconds: dict[str, float] = {}
        for name in names[turn:] + names[:turn]:
            start = time.perf_counter()
            rivals[name]()
            seconds[name] = time.perf_counter() - start
        yield seconds
