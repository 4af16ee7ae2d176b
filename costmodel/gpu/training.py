"""Training on records of GPU kernels: trees for each fact of the code, the same for the same records and seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from effc.compiler.ir.errors import OptionError
from effc.costmodel.gpu import features
from effc.costmodel.gpu.dataset import GpuData
from effc.costmodel.gpu.predictor import CHANCES, COUNTED, Array, CodePredictor, counted
from effc.costmodel.model.boosting import FEWEST, grown

ROUNDS = 120
_PARAMETERS = {
    "num_leaves": 31,
    "learning_rate": 0.1,
    "min_data_in_leaf": 5,
    "feature_fraction": 0.6,
}
_OBJECTIVES: Mapping[str, Mapping[str, Any]] = {
    **{name: {"objective": "l1"} for name in COUNTED},
    **{name: {"objective": "binary"} for name in CHANCES},
}


def learned(data: GpuData, name: str) -> Array:
    """What trees learn of a fact; NaN where it is not known."""
    if name == "refused":
        return data.refused.astype(float)
    if name == "spills":
        frame = data.fact("frame")
        return np.where(np.isnan(frame), np.nan, frame > 0)
    found: Array = np.log2(np.maximum(data.fact(name), 1) / counted(data.rows, name))
    return found


def train(
    data: GpuData,
    seed: int = 0,
    workers: int = 1,
    rounds: int = ROUNDS,
    watch: Callable[[str], None] = lambda name: None,
) -> CodePredictor:
    """A model of all records; ``watch(name)`` is told which fact begins. OptionError: too few records, refused ones aside."""
    made = len(data) - int(data.refused.sum())
    if made < FEWEST:
        raise OptionError(
            f"{made} records of code are too few to learn from: collect {FEWEST} at least that were not refused"
        )
    texts = {}
    for name, objective in _OBJECTIVES.items():
        watch(name)
        parameters = {**_PARAMETERS, **objective}
        texts[name] = grown(data.rows, learned(data, name), features.COLUMNS, parameters, rounds, seed, workers)
    return CodePredictor.of(texts)
