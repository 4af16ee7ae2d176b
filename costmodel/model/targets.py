"""What a model predicts of a kernel, each by trees of its own: how LightGBM learns it, and what the trees' sums mean.

A call's time is learned as the logarithm of its ratio to the counted one (`features.cycles`): so trees learn how far from the count kernels
of a kind are, and sizes that no trace had scale as the count does. So are the instructions and bytes of the code (`features.code`); other
facts are learned as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from effc.costmodel.model.dataset import CODE, Dataset, counted_instructions

Array = NDArray[np.float64]

#: Quantiles of the latency's distribution, by the name of the target.
QUANTILES = {"latency.low": 0.1, "latency.median": 0.5, "latency.high": 0.9}
#: The median again, of another seed: the mean of two is steadier than one of twice as many trees.
SECOND = "latency.second"
#: Targets without which no time is predicted.
LATENCY = (*QUANTILES, SECOND)
#: Trees that shift all three, of a model that was adapted to another machine (`transfer`).
CORRECTION = "latency.correction"
#: Ends of the range need not be told as finely as the median: fewer and smaller trees, which take a third of the time.
_COARSE = {"num_leaves": 20, "max_depth": 6, "learning_rate": 0.1}
_MEDIAN = {"objective": "quantile", "alpha": 0.5, "learning_rate": 0.1}

#: Code has no noise, and what a compiler writes out twice depends on details.
_FINE = {"objective": "huber", "alpha": 0.2, "num_leaves": 63, "max_depth": 12, "min_data_in_leaf": 4}


@dataclass(frozen=True)
class Target:
    """``parameters``: LightGBM's, beyond the usual; ``learned(data)``: a number of each record, NaN where there is none to learn from;
    ``share``: of the usual number of trees; ``shift``: of the seed.
    """

    parameters: Mapping[str, Any]
    learned: Callable[[Dataset], Array]
    share: float = 1.0
    shift: int = 0


def _latency(data: Dataset) -> Array:
    found: Array = np.log2(data.seconds / data.counted)
    return found


def _code(name: str) -> Callable[[Dataset], Array]:
    return lambda data: data.code[:, CODE.index(name)]


def _size(name: str) -> Callable[[Dataset], Array]:
    return lambda data: np.asarray(np.log2(_code(name)(data) / counted_instructions(data.rows)))


def _any(data: Dataset) -> Array:
    spills = _code("spills")(data)
    return np.where(np.isnan(spills), np.nan, spills > 0)


#: By the name of the target; ``spills``: whether there is any.
TARGETS: Mapping[str, Target] = {
    **{
        name: Target({"objective": "quantile", "alpha": alpha, **_COARSE}, _latency, share=0.5)
        for name, alpha in QUANTILES.items()
        if name != "latency.median"
    },
    "latency.median": Target(_MEDIAN, _latency, share=0.5),
    SECOND: Target(_MEDIAN, _latency, share=0.5, shift=1000),
    "instructions": Target(_FINE, _size("instructions"), share=0.75),
    "code_bytes": Target(_FINE, _size("code_bytes"), share=0.75),
    "spills": Target({"objective": "binary"}, _any),
    "vector_share": Target({"objective": "l1"}, _code("vector_share")),
}
