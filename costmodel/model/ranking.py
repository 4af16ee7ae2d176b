"""How well one order agrees with another."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def kendall(a: Array, b: Array) -> float:
    """Kendall's tau-b: of all pairs, those in the same order less those in the other one; 0 where one side is all ties."""
    x, y = np.sign(a[:, None] - a), np.sign(b[:, None] - b)
    pairs = np.triu_indices(len(a), 1)
    x, y = x[pairs], y[pairs]
    scale = np.sqrt((x != 0).sum() * (y != 0).sum())
    return float((x * y).sum() / scale) if scale else 0.0


def auroc(score: Array, true: NDArray[np.bool_]) -> float:
    """The area under the receiver's operating curve: how likely a true one has a higher score than another, ties counted as half; NaN where
    all are alike.
    """
    values, number, counts = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[number]
    many, few = int(true.sum()), int((~true).sum())
    if not many or not few or not len(values):
        return float("nan")
    return float((rank[true].sum() - many * (many + 1) / 2) / (many * few))
