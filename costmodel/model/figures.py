"""What a judgment consists of: counts, and numbers that can be averaged over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TypeVar

import numpy as np


@dataclass(frozen=True)
class Figures:
    """Numbers; NaN, in JSON null, where there is none."""

    def to_json(self) -> dict[str, float | None]:
        return {name: None if value != value else value for name, value in asdict(self).items()}


_F = TypeVar("_F", bound=Figures)


def mean(runs: Sequence[_F]) -> _F:
    """Of all numbers; counts (int) are the same in all."""
    names = [name for name, value in asdict(runs[0]).items() if not isinstance(value, int)]
    return replace(runs[0], **{n: float(np.mean([getattr(r, n) for r in runs])) for n in names})
