"""How numbers of many magnitudes become features."""

from __future__ import annotations

import math

NAN = math.nan


def log(value: float) -> float:
    """log2(1 + value): 0 for nothing; NaN stays."""
    return math.log2(1.0 + value)


def ratio(value: float, base: float) -> float:
    """log2(value / base); NaN where one of them is not positive."""
    return math.log2(value / base) if value > 0 and base > 0 else NAN


def share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
