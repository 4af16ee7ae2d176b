"""Training: three quantile regressions by gradient-boosted trees, the same for the same traces and seed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from effc.compiler.ir.errors import OptionError
from effc.costmodel import features
from effc.costmodel.model.dataset import Dataset
from effc.costmodel.model.predictor import QUANTILES, Predictor, library

#: Records below which trees only learn noise.
FEWEST = 50
ROUNDS = 600
_PARAMETERS = {
    "objective": "quantile",
    "num_leaves": 31,
    "learning_rate": 0.05,
    "min_data_in_leaf": 5,
    "feature_fraction": 0.7,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
}


def train(
    data: Dataset,
    seed: int = 0,
    workers: int = 1,
    rounds: int = ROUNDS,
    watch: Callable[[str], None] = lambda name: None,
) -> Predictor:
    """A model of all records of ``data``; ``watch(name)`` is told which quantile begins. OptionError: there are too few."""
    if len(data) < FEWEST:
        raise OptionError(f"{len(data)} records are too few to learn from: collect {FEWEST} at least")
    lightgbm = library()
    target = np.log2(data.seconds / data.roof)
    boosters = {}
    for name, quantile in QUANTILES.items():
        watch(name)
        table = lightgbm.Dataset(data.rows, target, feature_name=list(features.COLUMNS), free_raw_data=False)
        parameters = {**_PARAMETERS, "alpha": quantile, "seed": seed, "num_threads": workers}
        boosters[name] = lightgbm.train(parameters, table, num_boost_round=rounds)
    return Predictor(boosters)
