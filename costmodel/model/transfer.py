"""Adapting a model to another machine by few records of it: a few small trees learn what the model gets wrong there.

Times get trees of their own, which shift the median and the ends of its range alike; facts of the code get more trees on top of theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from effc.compiler.ir.errors import OptionError
from effc.costmodel import features
from effc.costmodel.model.boosting import grown
from effc.costmodel.model.dataset import CODE, Dataset
from effc.costmodel.model.evaluation import Errors, errors
from effc.costmodel.model.predictor import Predictor, widening
from effc.costmodel.model.targets import CORRECTION, TARGETS

#: Records below which nothing is learned, and share of them that a leaf must hold.
FEWEST, _LEAF = 20, 0.08
#: Of what is wrong with times: an average, so that a machine that is slower at everything is one number; outliers count less, and few
#: records move a leaf little: larger trees made what they had not seen worse.
_TIMES = {"objective": "huber", "alpha": 0.3, "num_leaves": 4, "extra_trees": True, "lambda_l2": 10.0}
_ROUNDS = 60
_PARAMETERS = {
    "num_leaves": 6,
    "learning_rate": 0.1,
    "feature_fraction": 0.5,
}


def sampled(data: Dataset, count: int, seed: int) -> tuple[Dataset, Dataset]:
    """``count`` records, of as many kernels as there are and of each family alike, at random; and all records of kernels that are not among
    them. OptionError: it asks for too few, or for more than there are.
    """
    if not FEWEST <= count <= len(data):
        raise OptionError(f"--samples must be between {FEWEST} and {len(data)}, the records of the traces")
    draw = np.random.default_rng(seed)
    order = draw.permutation(len(data))
    turn: dict[str, int] = {}
    turns = np.zeros(len(data), int)  # of each record: how many of its kernel come before it
    for i in order:
        site = str(data.sites[i])
        turn[site] = turns[i] = turn.get(site, -1) + 1
    place: dict[tuple[str, int], int] = {}
    rank = np.zeros(len(data), int)  # of each record: how many of its family and turn come before it
    for i in order:
        key = str(data.families[i]), int(turns[i])
        rank[i] = place[key] = place.get(key, -1) + 1
    listed = np.lexsort((draw.random(len(data)), rank, turns))
    chosen = np.zeros(len(data), bool)
    chosen[listed[:count]] = True
    return data.only(chosen), data.only(~np.isin(data.sites, data.sites[chosen]))


def adapted(
    base: Predictor,
    chosen: Dataset,
    rest: Dataset,
    seed: int = 0,
    workers: int = 1,
    watch: Callable[[str], None] = lambda name: None,
) -> tuple[Predictor, Errors | None, Errors | None]:
    """``base`` with what ``chosen`` teaches, and the errors on ``rest`` before and after; None where it holds nothing."""
    if CORRECTION in base.texts:
        raise OptionError("this model was adapted before: adapt the one that it was made from")
    watch("latency")
    _, median, _ = base.seconds(chosen.rows)
    texts = {**base.texts, CORRECTION: _learned(chosen.rows, np.log2(chosen.seconds / median), _TIMES, seed, workers)}
    for name in CODE:
        learned = TARGETS[name].learned(chosen)
        known = ~np.isnan(learned)
        if name in base.texts and known.sum() >= FEWEST:
            watch(name)
            parameters = {**TARGETS[name].parameters, "num_leaves": _PARAMETERS["num_leaves"]}
            texts[name] = _learned(chosen.rows[known], learned[known], parameters, seed, workers, base.texts[name])
    found = Predictor.of(texts, base.widening)
    if not len(rest):
        return found, None, None
    found = found.widened(base.widening * max(1.0, widening(rest.seconds, *found.seconds(rest.rows))))
    return found, _judged(base, rest), _judged(found, rest)


def _learned(
    rows: NDArray[np.float32],
    learned: NDArray[np.float64],
    objective: Mapping[str, Any],
    seed: int,
    workers: int,
    base: str | None = None,
) -> str:
    """LightGBM's text of trees, on top of those of the text ``base``."""
    leaf = max(round(_LEAF * len(rows)), 3)
    parameters = {**_PARAMETERS, **objective, "min_data_in_leaf": leaf}
    return grown(rows, learned, features.COLUMNS, parameters, _ROUNDS, seed, workers, base)


def _judged(model: Predictor, data: Dataset) -> Errors:
    low, median, high = model.seconds(data.rows)
    return errors(data, median, median, (low, high))
