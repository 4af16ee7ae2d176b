"""What a judgment consists of: counts, and numbers that can be averaged over seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Figures:
    """Numbers; NaN, in JSON null, where there is none."""

    def to_json(self) -> dict[str, float | None]:
        return {name: None if value != value else value for name, value in asdict(self).items()}


_F = TypeVar("_F", bound=Figures)
#: By family, and ``all``, then by who predicts.
Judgment: TypeAlias = Mapping[str, Mapping[str, _F]]


def mean(runs: Sequence[_F]) -> _F:
    """Of all numbers; counts (int) are the same in all."""
    names = [name for name, value in asdict(runs[0]).items() if not isinstance(value, int)]
    return replace(runs[0], **{n: float(np.mean([getattr(r, n) for r in runs])) for n in names})


def by_family(families: NDArray[np.str_], judged: Callable[[NDArray[np.bool_]], Mapping[str, _F]]) -> Judgment[_F]:
    """What ``judged`` says of the records of each family, and of ``all``."""
    each = {str(family): judged(families == family) for family in np.unique(families)}
    return {**each, "all": judged(np.ones(len(families), bool))}


def mean_of(runs: Sequence[Judgment[_F]]) -> dict[str, dict[str, _F]]:
    """The means of judgments of the same families."""
    return {
        family: {who: mean([run[family][who] for run in runs]) for who in found} for family, found in runs[0].items()
    }
