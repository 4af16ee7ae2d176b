"""How numbers of many magnitudes become features: by the names of their columns, for all rows at once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

NAN = math.nan
#: Beginnings of names of counts, sizes and times, of ``log2(1 + x)``; and of ratios, of ``log2(x)``, NaN where one side is 0.
_COUNTS, _RATIOS = "log_", "ratio_"


def scaled(rows: NDArray[np.float64], names: Sequence[str]) -> NDArray[np.float32]:
    """``rows`` with logarithms in the columns that are named so."""
    counts = [i for i, name in enumerate(names) if name.startswith(_COUNTS)]
    ratios = [i for i, name in enumerate(names) if name.startswith(_RATIOS)]
    rows[:, counts] = np.log2(1 + rows[:, counts])
    known = np.where(rows[:, ratios] > 0, rows[:, ratios], NAN)
    rows[:, ratios] = np.log2(known)
    return rows.astype(np.float32)


def counts(rows: NDArray[np.float32], column: int) -> NDArray[np.float64]:
    """The numbers of a column of `scaled` rows that is a logarithm."""
    found: NDArray[np.float64] = np.exp2(rows[:, column].astype(np.float64)) - 1
    return found


def share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
