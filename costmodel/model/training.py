"""Training: gradient-boosted trees for each target, the same for the same traces and seed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from effc.compiler.ir.errors import OptionError
from effc.costmodel import features
from effc.costmodel.model.dataset import Dataset
from effc.costmodel.model.predictor import Predictor
from effc.costmodel.model.targets import TARGETS

#: Records below which trees only learn noise.
FEWEST = 50
ROUNDS = 200
_PARAMETERS = {
    "num_leaves": 31,
    "max_depth": 8,
    "learning_rate": 0.05,
    "min_data_in_leaf": 10,
    "feature_fraction": 0.5,
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
    targets: Iterable[str] = TARGETS,
) -> Predictor:
    """A model of all records of ``data``; ``watch(name)`` is told which target begins. Targets that too few records know are left out.
    OptionError: there are too few records.
    """
    if len(data) < FEWEST:
        raise OptionError(f"{len(data)} records are too few to learn from: collect {FEWEST} at least")
    lightgbm = library()
    texts = {}
    for name in targets:
        learned = TARGETS[name].learned(data)
        known = ~np.isnan(learned)
        if known.sum() < FEWEST:
            continue
        watch(name)
        table = lightgbm.Dataset(data.rows[known], learned[known], feature_name=list(features.COLUMNS))
        parameters = {**_PARAMETERS, **TARGETS[name].parameters, "seed": seed, "num_threads": workers}
        count = max(round(rounds * TARGETS[name].share), 1)
        texts[name] = lightgbm.train(parameters, table, num_boost_round=count).model_to_string()
    return Predictor.of(texts)


def library() -> Any:
    """LightGBM; OptionError where it is not installed."""
    try:
        import lightgbm
    except ImportError:
        raise OptionError("training a cost model needs LightGBM: pip install 'effc[costmodel]'") from None
    return lightgbm
