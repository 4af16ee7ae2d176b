"""Training: gradient-boosted trees for each target, the same for the same traces and seed."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from effc.compiler.ir.errors import OptionError
from effc.costmodel import features
from effc.costmodel.model.boosting import FEWEST, grown
from effc.costmodel.model.dataset import Dataset
from effc.costmodel.model.predictor import Predictor
from effc.costmodel.model.targets import TARGETS

ROUNDS = 200
_PARAMETERS = {
    "num_leaves": 31,
    "max_depth": 8,
    "learning_rate": 0.05,
    "min_data_in_leaf": 10,
    "feature_fraction": 0.5,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
}


def train(
    data: Dataset,
    seed: int = 0,
    workers: int = 1,
    rounds: int = ROUNDS,
    watch: Callable[[str], None] = lambda name: None,
    targets: Iterable[str] = TARGETS,
) -> Predictor:
    """A model of all records of ``data``; ``watch(name)`` is told which target begins. Targets that too few records know are left out.
    OptionError: there are too few records.
    """
    if len(data) < FEWEST:
        raise OptionError(f"{len(data)} records are too few to learn from: collect {FEWEST} at least")
    texts = {}
    for name in targets:
        target = TARGETS[name]
        learned = target.learned(data)
        if (~np.isnan(learned)).sum() < FEWEST:
            continue
        watch(name)
        parameters, count = {**_PARAMETERS, **target.parameters}, max(round(rounds * target.share), 1)
        texts[name] = grown(data.rows, learned, features.COLUMNS, parameters, count, seed + target.shift, workers)
    return Predictor.of(texts)
