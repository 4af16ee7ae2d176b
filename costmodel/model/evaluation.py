"""How good a model is on what it has not seen: families of shapes or models held out whole, beside simpler ways to choose.

Beside the model stand the roofline (of the machine's peak and bandwidth, with the template's own schedule as its choice, since a roof
is the same for all), a constant (the median over the roof in the training data), and a schedule taken at random.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from effc.compiler.ir.errors import OptionError
from effc.costmodel.model.dataset import Dataset, site_key
from effc.costmodel.model.predictor import UNSURE
from effc.costmodel.model.training import ROUNDS, train
from effc.costmodel.traces import Part

#: Sites whose ranking is judged: so many schedules at least, and so far apart.
CANDIDATES, RANGE = 8, 1.3
_TOP = 5

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Errors:
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

    def to_json(self) -> dict[str, float | None]:
        return {name: None if value != value else value for name, value in asdict(self).items()}


def held_out(
    data: Dataset,
    seeds: Sequence[int],
    workers: int = 1,
    rounds: int = ROUNDS,
    watch: Callable[[str], None] = lambda text: None,
) -> dict[str, dict[str, Errors]]:
    """By family, then by who predicts (``model``, ``roofline``, ``constant``, ``random``): the errors on that family of what was
    trained on all others, the mean over ``seeds``; at last the family ``all``, over all records. OptionError: there are not two
    families.
    """
    families = sorted(set(map(str, data.families)))
    if len(families) < 2:
        raise OptionError(f"the traces hold the family {families[0]} alone: holding out a family needs another one")
    runs: list[dict[str, dict[str, Errors]]] = []
    for seed in seeds:
        folds: dict[str, tuple[Dataset, dict[str, tuple[Array, Array, Array]]]] = {}
        for family in families:
            watch(f"seed {seed}, without {family}")
            test = data.only(data.families == family)
            rest = data.only((data.families != family) & ~np.isin(data.sites, test.sites))
            folds[family] = test, _predictions(rest, test, seed, workers, rounds)
        runs.append(_judged(folds, data, seed))
    return {
        family: {who: _mean([run[family][who] for run in runs]) for who in found} for family, found in runs[0].items()
    }


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


def kendall(a: Array, b: Array) -> float:
    """Kendall's tau-b: of all pairs, those in the same order less those in the other one; 0 where one side is all ties."""
    x, y = np.sign(a[:, None] - a), np.sign(b[:, None] - b)
    pairs = np.triu_indices(len(a), 1)
    x, y = x[pairs], y[pairs]
    scale = np.sqrt((x != 0).sum() * (y != 0).sum())
    return float((x * y).sum() / scale) if scale else 0.0


def _predictions(
    rest: Dataset, test: Dataset, seed: int, workers: int, rounds: int
) -> dict[str, tuple[Array, Array, Array]]:
    """``(low, median, high)`` by who predicts."""
    found = {"model": train(rest, seed, workers, rounds).seconds(test.rows, workers)}
    found["roofline"] = (test.roof,) * 3
    found["constant"] = (test.roof * np.median(rest.seconds / rest.roof),) * 3
    return found


def _judged(
    folds: Mapping[str, tuple[Dataset, dict[str, tuple[Array, Array, Array]]]], data: Dataset, seed: int
) -> dict[str, dict[str, Errors]]:
    found: dict[str, dict[str, Errors]] = {}
    draw = np.random.default_rng(seed)
    for family, (test, predicted) in folds.items():
        own = np.where(test.own, 0.0, 1.0)  # a roof does not tell schedules apart: the template's own is taken
        low, median, high = predicted["model"]
        at_random = draw.random(len(test))
        found[family] = {
            "model": errors(test, median, median, (low, high)),
            "roofline": errors(test, predicted["roofline"][1], own),
            "constant": errors(test, predicted["constant"][1], own),
            "random": errors(test, predicted["constant"][1], at_random),
        }
    whole = {
        who: _pooled([found[family][who] for family in found]) for who in ("model", "roofline", "constant", "random")
    }
    return {**found, "all": whole}


def _pooled(parts: Sequence[Errors]) -> Errors:
    """Over all records, or sites, of the parts."""

    def mean(name: str, weights: Sequence[int]) -> float:
        values = [
            (getattr(p, name), w)
            for p, w in zip(parts, weights, strict=True)
            if getattr(p, name) == getattr(p, name) and w
        ]
        total = sum(w for _, w in values)
        return sum(v * w for v, w in values) / total if total else float("nan")

    records, sites = [p.records for p in parts], [p.sites for p in parts]
    by_record = {name: mean(name, records) for name in ("mape", "within", "covered", "unsure")}
    by_site = {name: mean(name, sites) for name in ("tau", "regret", "top_regret")}
    return Errors(records=sum(records), sites=sum(sites), **by_record, **by_site)


def _mean(runs: Sequence[Errors]) -> Errors:
    names = [name for name in asdict(runs[0]) if name not in ("records", "sites")]
    return Errors(runs[0].records, runs[0].sites, **{n: float(np.mean([getattr(r, n) for r in runs])) for n in names})


def _by_site(sites: NDArray[np.str_]) -> list[NDArray[np.intp]]:
    order = np.argsort(sites, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(np.unique(sites[order], return_inverse=True)[1])) + 1)


def _average(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
