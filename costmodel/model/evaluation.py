"""How good a model is on what it has not seen: kinds of kernels or models, or their shapes, held out whole, beside simpler ways to
choose.

Beside the model stand the roofline (of the machine's peak and bandwidth, with the template's own schedule as its choice, since a roof
is the same for all), the count of cycles that the model learns to correct, a constant (the median over the roof in the training data), and
a schedule taken at random.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from effc.compiler.ir.errors import OptionError
from effc.costmodel.model.dataset import Dataset, site_key
from effc.costmodel.model.figures import Figures, by_family, mean_of
from effc.costmodel.model.predictor import UNSURE, widening
from effc.costmodel.model.ranking import kendall
from effc.costmodel.model.targets import LATENCY
from effc.costmodel.model.training import ROUNDS, train
from effc.costmodel.traces import Part

#: Sites whose ranking is judged: so many schedules at least, and so far apart.
CANDIDATES, RANGE = 8, 1.3
_TOP = 5
#: Parts into which shapes are divided, each held out in turn.
PARTS = 5
#: What can be held out whole: families as the traces have them, or shapes, of which a family's others stay.
HELD = ("family", "shape")

Array = NDArray[np.float64]
#: Low, median and high of each record.
Range = tuple[Array, Array, Array]


@dataclass(frozen=True)
class Errors(Figures):
    """``mape``: mean of |predicted - measured| / measured; ``within``: share within 10 %; ``tau``: Kendall's, mean over judged sites
    (NaN where there is none); ``regret``: how much slower the schedule chosen is than the best of its site, mean over sites with two or
    more; ``top_regret``: the best of the five predicted fastest; ``covered``: share of times inside the predicted range, ``unsure``: of
    ranges that are too wide to act on.
    """

    records: int
    sites: int
    mape: float
    within: float
    tau: float
    regret: float
    top_regret: float
    covered: float = float("nan")
    unsure: float = float("nan")


@dataclass(frozen=True)
class Judged:
    """``errors``: by family, then by who predicts (``model``, ``count``, ``roofline``, ``constant``, ``random``); at last the family
    ``all``. ``widening``: of the model's ranges, so that they hold what they promise; ``predicted``: the last seed's median of each record.
    """

    errors: dict[str, dict[str, Errors]]
    widening: float
    predicted: Array


def held_out(
    data: Dataset,
    seeds: Sequence[int],
    workers: int = 1,
    rounds: int = ROUNDS,
    watch: Callable[[str], None] = lambda text: None,
    by: str = "family",
) -> Judged:
    """The errors on each part of what was trained on all others, the mean over ``seeds``. ``by``: one of `HELD`. OptionError: there are not
    two parts.
    """
    runs = []
    for seed in seeds:
        parts = parts_of(data, by, seed)
        found = _predictions(data, parts, seed, workers, rounds, watch)
        wide = widening(data.seconds, *found["model"])
        found["model"] = _widened(data, parts, found["model"])
        draw = np.random.default_rng(seed).random(len(data))
        runs.append(by_family(data.families, partial(_judged, data, found, draw)))
    return Judged(mean_of(runs), wide, found["model"][1])


class Divisible(Protocol):
    """Records with the family, shape and kernel of each."""

    @property
    def families(self) -> NDArray[np.str_]: ...
    @property
    def shapes(self) -> NDArray[np.str_]: ...
    @property
    def sites(self) -> NDArray[np.str_]: ...


def parts_of(data: Divisible, by: str, seed: int) -> NDArray[np.intp]:
    """Of each record the number of the part that it is held out with."""
    names, number = np.unique(data.families if by == "family" else data.shapes, return_inverse=True)
    if len(names) < 2:
        raise OptionError(f"the traces hold the {by} {names[0]} alone: holding out a {by} needs another one")
    if by == "family":
        return number
    found: NDArray[np.intp] = np.random.default_rng(seed).permutation(len(names))[number] % PARTS
    return found


def without(data: Divisible, parts: NDArray[np.intp], part: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which records are the part's, and which are trained on: no kernel of the part is among them."""
    test = parts == part
    return test, ~test & ~np.isin(data.sites, data.sites[test])


def repeated(parts: Iterable[Part]) -> tuple[int, float, float]:
    """The noise floor: how many records were measured again, the mean and the median of the relative difference between two such times."""
    times: dict[tuple[str, ...], list[float]] = {}
    for part in parts:
        for trace in part.traces:
            times.setdefault((part.hardware.digest(), *site_key(trace), trace.schedule), []).append(trace.median)
    pairs = [abs(b - a) / min(a, b) for found in times.values() for a, b in itertools.pairwise(found)]
    return (
        len(pairs),
        float(np.mean(pairs)) if pairs else float("nan"),
        float(np.median(pairs)) if pairs else float("nan"),
    )


def errors(data: Dataset, predicted: Array, order: Array, likely: tuple[Array, Array] | None = None) -> Errors:
    """Of times ``predicted`` for ``data``; schedules of a site are chosen by the least of ``order``. ``likely``: ends of the range."""
    share = np.abs(predicted - data.seconds) / data.seconds
    taus, regrets, tops = [], [], []
    for found in _by_site(data.sites):
        seconds, ranks = data.seconds[found], order[found]
        if len(found) < 2:
            continue
        chosen = np.argsort(ranks, kind="stable")
        regrets.append(seconds[chosen[0]] / seconds.min() - 1)
        tops.append(seconds[chosen[:_TOP]].min() / seconds.min() - 1)
        if len(found) >= CANDIDATES and seconds.max() / seconds.min() >= RANGE:
            taus.append(kendall(ranks, seconds))
    covered = wide = float("nan")
    if likely is not None:
        low, high = likely
        covered = float(((low <= data.seconds) & (data.seconds <= high)).mean())
        wide = float(((high - low) / (2 * predicted) > UNSURE).mean())
    return Errors(
        records=len(data),
        sites=len(regrets),
        mape=float(share.mean()),
        within=float((share <= 0.1).mean()),
        tau=_average(taus),
        regret=_average(regrets),
        top_regret=_average(tops),
        covered=covered,
        unsure=wide,
    )


def _predictions(
    data: Dataset, parts: NDArray[np.intp], seed: int, workers: int, rounds: int, watch: Callable[[str], None]
) -> dict[str, Range]:
    """Of each record, by who predicts, without having seen its part."""
    model, constant = np.zeros((3, len(data))), np.zeros(len(data))
    for part in np.unique(parts):
        test, rest = without(data, parts, part)
        watch(f"seed {seed}, without {', '.join(sorted(set(data.families[test])))}")
        known = data.only(rest)
        model[:, test] = train(known, seed, workers, rounds, targets=LATENCY).seconds(data.rows[test])
        constant[test] = data.roof[test] * np.median(known.seconds / known.roof)
    low, median, high = model
    return {
        "model": (low, median, high),
        "count": (data.counted,) * 3,
        "roofline": (data.roof,) * 3,
        "constant": (constant,) * 3,
    }


def _widened(data: Dataset, parts: NDArray[np.intp], model: Range) -> Range:
    """Each part's ranges as wide as those of the others had to be."""
    low, median, high = (np.copy(m) for m in model)
    for part in np.unique(parts):
        test = parts == part
        factor = widening(data.seconds[~test], *(m[~test] for m in model))
        low[test] = median[test] * (low[test] / median[test]) ** factor
        high[test] = median[test] * (high[test] / median[test]) ** factor
    return low, median, high


def _judged(
    data: Dataset, predicted: Mapping[str, Range], at_random: Array, chosen: NDArray[np.bool_]
) -> dict[str, Errors]:
    test, own = data.only(chosen), np.where(data.own, 0.0, 1.0)[chosen]  # a roof does not tell schedules apart
    low, median, high = (m[chosen] for m in predicted["model"])
    counted, roof, constant = (predicted[who][1][chosen] for who in ("count", "roofline", "constant"))
    return {
        "model": errors(test, median, median, (low, high)),
        "count": errors(test, counted, counted),
        "roofline": errors(test, roof, own),
        "constant": errors(test, constant, own),
        "random": errors(test, constant, at_random[chosen]),
    }


def _by_site(sites: NDArray[np.str_]) -> list[NDArray[np.intp]]:
    order = np.argsort(sites, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(np.unique(sites[order], return_inverse=True)[1])) + 1)


def _average(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
