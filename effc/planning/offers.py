"""Compressed variants of a model as candidates for its sites: each is lowered whole, its kernels priced, its errors estimated.

So a candidate is the kernel that code generation really makes of it, fused as it would be. No code is made: candidates are proposed at a
predicted time, and measured in the plans that take them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from effc.compiler.capture.recording import Recording
from effc.compiler.compress.compressor import Compressed
from effc.compiler.compress.form import Form
from effc.compiler.compress.stored import StoredWeight
from effc.compiler.ir.candidate import DENSE, Candidate, Latency, dense
from effc.compiler.ir.compression import Compression
from effc.compiler.ir.options import Options
from effc.compiler.ir.plan import Plan
from effc.compiler.ir.site import Site
from effc.passes.low_rank import LowRank
from effc.passes.quantize import Quantize
from effc.passes.sparsity import Sparsify
from effc.planning.feeders import Feeders
from effc.planning.layered import layered
from effc.planning.pricing import Pricing
from effc.planning.reach import Reach
from effc.planning.sensitivity import Sensitivity
from effc.planning.sketch import Sketch
from effc.planning.trial import Compiled, Kernels, Trial
from effc.planning.variants import Pairs, Variant, draft, named, only, pairs_of, passes_of

#: Of a draft's error what no algorithm gets below.
_FAR_BETTER = 0.25
#: Share of the model's time that kernels must take together, so that other forms of their weights are looked for.
_WORTH = 0.01

#: By parameter and the options of a variant, what a plan holds.
_Weights = dict[tuple[str, Pairs], Mapping[str, StoredWeight[Form]]]


@dataclass(frozen=True)
class Offers:
    """``candidates`` by site, the dense one first; ``weights``: what a plan holds of each parameter in each of its compressed forms;
    ``units``: weights that are decided on together.
    """

    candidates: Mapping[str, list[Candidate]]
    weights: Mapping[tuple[str, Pairs], Mapping[str, StoredWeight[Form]]]
    units: Sequence[_Unit] = ()

    def timed(self, plan: Plan, compiled: Compiled) -> dict[int, Latency]:
        """What the compressed candidates of ``plan``, by which ``compiled`` is, take in it; by the number of the decision. One that PyTorch
        runs there, in a time that nothing tells, counts as no faster than the exact kernel.
        """
        units, feeders, found = {unit.site: unit for unit in self.units}, Feeders.found(compiled), {}
        for number, decision in enumerate(plan.decisions):
            if decision.pass_name != DENSE:
                sites, latency = units[decision.site].taken(compiled, feeders)
                found[number] = latency if sites else replace(decision.dense, uncertainty=1.0)
        return found


def offers(
    trial: Trial,
    plain: Compiled,
    options: Options,
    variants: Sequence[Compression],
    prices: Pricing,
    *,
    smaller: bool = False,
    most: float = math.inf,
) -> Offers:
    """Lower and price each variant beside ``plain``, the exact model, which is timed; then those of two passes that gain at one weight.

    What takes long to make, and options do not ask for, is made of those weights alone where a draft of it may win, and takes the draft's
    kernels; of all where it may be taken because it is ``smaller``. ``most``: the estimated error of one weight above which no plan takes
    it; a draft that cannot become better than that is not lowered, and factors are made of weights alone that may lose less.
    """
    offering = _Offering(trial, plain, options, prices)
    fixed = [v for v in variants if isinstance(dict(options.passes).get(v.name), tuple)]
    drafted = [v for v in variants if v not in fixed and draft(v) != v and not smaller]
    made = [v for v in variants if v not in drafted]
    reach = Reach(most, trial, offering.sensitivity, offering.worth)
    made = [v for v in made if v in fixed] + reach.narrowed([v for v in made if v not in fixed])
    offering.take([(variant,) for variant in made])
    worthwhile = offering.take_worthwhile(offering.within(drafted, most))
    offering.take(_pairs(offering, [*made, *worthwhile], fixed))
    return Offers(offering.candidates, offering.weights, offering.units)


@dataclass(frozen=True)
class _Sketched:
    """Of one variant, as in `Offers`; ``kernels``: of the whole model."""

    kernels: Sketch
    weights: _Weights
    candidates: list[tuple[_Unit, Candidate]]


class _Offering:
    """Candidates as they are found."""

    def __init__(self, trial: Trial, plain: Compiled, options: Options, prices: Pricing) -> None:
        self.trial, self.options, self.prices = trial, options, prices
        self.weights: _Weights = {}
        self.sensitivity = Sensitivity(trial)
        trial.time(plain)
        self.candidates, self.units = _measured(plain), _units(plain)

    def take(self, variants: Sequence[Variant]) -> None:
        """Add candidates of ``variants``; of one of several passes at the weights that all of them change."""
        for found in self._sketched(variants):
            self._add(found)

    def _add(self, found: _Sketched) -> None:
        self.weights |= found.weights
        for unit, candidate in found.candidates:
            self.candidates[unit.site].append(candidate)

    def within(self, variants: Sequence[Compression], most: float) -> list[Compression]:
        """Those that may gain something, at the weights where they may have an error of at most ``most``, as far as drafts tell."""
        if most == math.inf:
            return list(variants)
        found: list[Compression] = []
        for variant in variants:
            reached = {name for name, error in self._drafted(variant).items() if _FAR_BETTER * error <= most}
            if self.worth(reached):
                found.append(only(variant, reached, self.trial))
        return found

    def worth(self, weights: Collection[str]) -> bool:
        """Whether the kernels that read these weights take enough of the time."""
        seconds = {site: _seconds(exact) for site, (exact, *_) in self.candidates.items()}
        own = sum(seconds[unit.site] + unit.elsewhere for unit in self.units if unit.params.intersection(weights))
        return own >= _WORTH * sum(seconds.values())

    def _drafted(self, variant: Compression) -> dict[str, float]:
        """Errors of its draft, by the weights that it changes."""
        drafted = (draft(variant),)
        return self._errors(drafted, self._compressed(drafted), pairs_of(drafted), {})

    def take_worthwhile(self, variants: Sequence[Compression]) -> list[Compression]:
        """Add candidates of each of ``variants`` for those weights at which its draft is faster than the exact kernel, and no candidate
        that there is already is at least as fast and far more exact. The variants that are left, each of those weights.
        """
        found = []
        for variant, sketched in zip(variants, self._sketched([(draft(v),) for v in variants]), strict=True):
            units = [
                unit for unit, candidate in sketched.candidates if self._may_win(candidate, self.candidates[unit.site])
            ]
            if units:
                kept = only(variant, {name for unit in units for name in unit.params}, self.trial)
                found.append(kept)
                self._add(self._candidates((kept,), self._compressed((kept,)), sketched.kernels))
        return found

    def _compressed(self, variant: Variant) -> list[Compressed]:
        return self.trial.compress(self.options.changed(passes=passes_of(self.options, variant)))

    @staticmethod
    def _may_win(candidate: Candidate, others: Sequence[Candidate]) -> bool:
        latency, (exact, *compressed) = _seconds(candidate), others
        better = (c for c in compressed if _seconds(c) <= latency and c.error <= _FAR_BETTER * candidate.error)
        return latency < _seconds(exact) and next(better, None) is None

    def _sketched(self, variants: Sequence[Variant]) -> Iterator[_Sketched]:
        """Of each; of one that is refused no candidates."""
        lowered = self.trial.lower([self.options.changed(passes=passes_of(self.options, v)) for v in variants])
        for variant, recording in zip(variants, lowered, strict=True):
            if recording is None:
                yield _Sketched(Sketch(Recording(), (), ()), {}, [])
            else:
                yield self._candidates(variant, recording.compressed, Sketch.of(recording, self.prices))

    def _candidates(self, variant: Variant, compressed: Sequence[Compressed], kernels: Sketch) -> _Sketched:
        """Of ``variant``, which makes ``compressed`` of the graphs' weights, and ``kernels`` or nearly these of the model."""
        found = _Sketched(kernels, {}, [])
        pairs, feeders = pairs_of(variant), Feeders.found(kernels)
        errors = self._errors(variant, compressed, pairs, found.weights)
        for unit in self.units:
            members = unit.params & errors.keys()
            if members:
                error = math.sqrt(sum(errors[name] ** 2 for name in members))
                candidate = unit.candidate(kernels, feeders, named(variant), pairs, error)
                if candidate is not None:
                    found.candidates.append((unit, candidate))
        return found

    def saved(self, variant: Compression) -> dict[str, float]:
        """Seconds of each site at which the variant, already taken, is faster."""
        pairs, found = pairs_of((variant,)), {}
        for site, (exact, *others) in self.candidates.items():
            for c in others:
                if (c.pass_name, c.options) == (variant.name, pairs):
                    found[site] = _seconds(exact) - _seconds(c)
        return {site: seconds for site, seconds in found.items() if seconds > 0}

    def _errors(
        self, variant: Variant, graphs: Sequence[Compressed], pairs: Pairs, weights: _Weights
    ) -> dict[str, float]:
        """By parameter; what plans then hold goes to ``weights``."""
        errors: dict[str, float] = {}
        for compressed in graphs:
            for one in layered(compressed):
                if len(variant) > 1 and len(one.layers) == 1:
                    continue  # the candidate of a single pass
                first = one.first
                if first.name not in self.trial.names:
                    continue
                shown = self.sensitivity.of(first.site, first.matrix)
                errors[first.name] = one.error(self.sensitivity.calibration) * shown
                weights[first.name, pairs] = one.weights
        return errors


def _pairs(offering: _Offering, variants: Sequence[Compression], fixed: Sequence[Compression]) -> list[Variant]:
    """Factors, then bytes: each with the quantization that saves most where both gain. Pruned weights only where options, ``fixed``, ask
    for them: no kernel of codes leaves zeros out, so they take the time of the codes.
    """
    quantized = [v for v in variants if isinstance(v, Quantize) and (v.weights == "int8" or v in fixed)]
    found: list[Variant] = []
    for first in variants:
        if not (isinstance(first, LowRank) or (isinstance(first, Sparsify) and first in fixed)):
            continue
        sites = offering.saved(first).keys()
        gains = [(sum(s for site, s in offering.saved(v).items() if site in sites), v) for v in quantized]
        gain, second = max(gains, key=lambda g: g[0], default=(0.0, first))
        if gain > 0:
            found.append((first, second))
    return found


@dataclass(frozen=True)
class _Unit:
    """Weights that are decided on together, for one kernel of the exact model reads them all: the one of ``site``. ``elsewhere``: seconds
    of its other kernels that read them. ``feeders``: of the exact model.
    """

    site: str
    params: frozenset[str]
    elsewhere: float
    feeders: Feeders

    def candidate(self, kernels: Kernels, feeders: Feeders, name: str, pairs: Pairs, error: float) -> Candidate | None:
        """A variant's, in the place of the site's kernel; None where PyTorch would run it, in a time that nothing tells."""
        sites, latency = self.taken(kernels, feeders)
        if not sites:
            return None
        specs, symbols = tuple((site.spec,) for site in sites), tuple(site.symbols for site in sites)
        return Candidate(name, specs, symbols, pairs, error, latency, proposed=True)

    def taken(self, kernels: Kernels, feeders: Feeders) -> tuple[list[Site], Latency]:
        """The kernels that read these weights, and what they take; with those of their ``feeders`` that the exact model has not, less those
        that only that has.
        """
        sites, seconds = [], feeders.beyond(self.feeders, self.params)
        elsewhere = self.elsewhere + self.feeders.beyond(feeders, self.params).seconds
        for site, latency in zip(kernels.sites, kernels.latencies(), strict=True):
            if self.params.intersection(_names(site)):
                sites.append(site)
                seconds = seconds + latency
        return sites, replace(seconds, seconds=max(seconds.seconds - elsewhere, 0.0))


def _units(plain: Compiled) -> list[_Unit]:
    """Those of the exact model; weights that several kernels read belong to the slowest of these."""
    timed = [
        (latency.seconds, site) for site, latency in zip(plain.sites, plain.latencies(), strict=True) if site.params
    ]
    found, taken, feeders = [], set[str](), Feeders.found(plain)
    for seconds, site in sorted(timed, key=lambda t: -t[0]):
        params = frozenset(site.params)
        if params.isdisjoint(taken):
            every = sum(s for s, other in timed if params.intersection(other.params))
            found.append(_Unit(site.name, params, every - seconds, feeders))
            taken |= params
    return found


def _seconds(candidate: Candidate) -> float:
    assert candidate.latency is not None, "offers have times, measured or predicted"
    return candidate.latency.seconds


def _names(site: Site) -> list[str]:
    """Names of the parameters whose forms a kernel reads."""
    return [name.partition(":")[0] for name in site.params]


def _measured(plain: Compiled) -> dict[str, list[Candidate]]:
    """The dense candidates at the times that they took."""
    times = plain.latencies()
    return {
        site.name: [replace(dense(site), latency=latency)] for site, latency in zip(plain.sites, times, strict=True)
    }
