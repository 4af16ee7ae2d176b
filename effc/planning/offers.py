"""Compressed variants of a model as candidates for its sites: each is lowered, its kernels priced, its errors estimated.

So a candidate is the kernel that code generation really makes of it, fused as it would be. No code is made: candidates are proposed at a
predicted time, and measured in the plans that take them. Of layers that are alike one is lowered, with what is around it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

from effc.compiler.capture.recording import Recording
from effc.compiler.compress.compressor import Compressed
from effc.compiler.compress.form import Form
from effc.compiler.compress.stored import StoredWeight
from effc.compiler.ir.candidate import DENSE, Candidate, Latency, dense
from effc.compiler.ir.compression import Compression
from effc.compiler.ir.options import Options
from effc.compiler.ir.plan import Plan
from effc.passes.low_rank import LowRank
from effc.passes.quantize import Quantize
from effc.passes.sparsity import Sparsify
from effc.planning.alike import examples, made_alike
from effc.planning.captured import Asked
from effc.planning.feeders import Feeders
from effc.planning.layered import layered
from effc.planning.pricing import Pricing
from effc.planning.reach import Reach
from effc.planning.sensitivity import Sensitivity
from effc.planning.sketch import Sketch
from effc.planning.trial import Compiled, Trial
from effc.planning.units import Unit, units_of
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
    units: Sequence[Unit] = ()

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
    worthwhile = offering.take_drafted(drafted, most)
    offering.take(_pairs(offering, [*made, *worthwhile], fixed))
    return Offers(offering.candidates, offering.weights, offering.units)


@dataclass(frozen=True)
class _Made:
    """What ``variant`` makes of the weights: ``compressed``, graph by graph; by parameter, ``weights`` as in `Offers`, and ``errors`` of
    the model.
    """

    variant: Variant
    compressed: list[Compressed]
    weights: _Weights
    errors: dict[str, float]


@dataclass(frozen=True)
class _Sketched:
    """``kernels`` that a variant makes, of some layers: at a unit's site, those of ``examples`` serve."""

    kernels: Sketch
    examples: Mapping[str, Unit]


class _Offering:
    """Candidates as they are found."""

    def __init__(self, trial: Trial, plain: Compiled, options: Options, prices: Pricing) -> None:
        self.trial, self.plain, self.options, self.prices = trial, plain, options, prices
        self.weights: _Weights = {}
        self.sensitivity = Sensitivity(trial)
        trial.time(plain)
        self.candidates, self.units = _measured(plain), units_of(plain)

    def take(self, variants: Sequence[Variant]) -> None:
        """Add candidates of ``variants``; of one of several passes at the weights that all of them change."""
        made = [self._make(variant) for variant in variants]
        for one, sketched in zip(made, self._sketched(made), strict=True):
            self._add(one, self._candidates(one, sketched))

    def _add(self, made: _Made, candidates: Sequence[tuple[Unit, Candidate]]) -> None:
        self.weights |= made.weights
        for unit, candidate in candidates:
            self.candidates[unit.site].append(candidate)

    def take_drafted(self, variants: Sequence[Compression], most: float) -> list[Compression]:
        """Add candidates of each of ``variants`` for those weights at which its draft says that it may have an error of at most ``most``,
        and that it is faster than the exact kernel, where no candidate that there is already is at least as fast and far more exact. The
        variants that are left, each of those weights.
        """
        drafts = [(variant, self._reaching(self._make((draft(variant),)), most)) for variant in variants]
        drafts = [(variant, made) for variant, made in drafts if self.worth(made.errors)]
        found = []
        for (variant, made), sketched in zip(drafts, self._sketched([made for _, made in drafts]), strict=True):
            units = [
                unit
                for unit, candidate in self._candidates(made, sketched)
                if self._may_win(candidate, self.candidates[unit.site])
            ]
            names = {name for unit in units for name in unit.params & made.errors.keys()}
            if names:
                found.append(only(variant, names, self.trial))
                kept = self._make((found[-1],))
                self._add(kept, self._candidates(kept, sketched))
        return found

    @staticmethod
    def _reaching(made: _Made, most: float) -> _Made:
        """Of the weights alone that a better algorithm than a draft's may bring to an error of at most ``most``."""
        return replace(made, errors={name: e for name, e in made.errors.items() if _FAR_BETTER * e <= most})

    def worth(self, weights: Collection[str]) -> bool:
        """Whether the kernels that read these weights take enough of the time."""
        seconds = {site: _seconds(exact) for site, (exact, *_) in self.candidates.items()}
        own = sum(seconds[unit.site] + unit.elsewhere for unit in self.units if unit.params.intersection(weights))
        return own >= _WORTH * sum(seconds.values())

    def _make(self, variant: Variant) -> _Made:
        compressed = self.trial.compress(self._options(variant))
        made = _Made(variant, compressed, {}, {})
        for graph in compressed:
            for one in layered(graph):
                if len(variant) > 1 and len(one.layers) == 1:
                    continue  # the candidate of a single pass
                first = one.first
                if first.name not in self.trial.names:
                    continue
                shown = self.sensitivity.of(first.site, first.matrix)
                made.errors[first.name] = one.error(self.sensitivity.calibration) * shown
                made.weights[first.name, pairs_of(variant)] = one.weights
        return made

    def _options(self, variant: Variant) -> Options:
        return self.options.changed(passes=passes_of(self.options, variant))

    @staticmethod
    def _may_win(candidate: Candidate, others: Sequence[Candidate]) -> bool:
        latency, (exact, *compressed) = _seconds(candidate), others
        better = (c for c in compressed if _seconds(c) <= latency and c.error <= _FAR_BETTER * candidate.error)
        return latency < _seconds(exact) and next(better, None) is None

    def _sketched(self, made: Sequence[_Made]) -> list[_Sketched]:
        """Of each; of one that is refused no kernels."""
        served = [self._examples(one) for one in made]
        asked = [
            Asked(self._options(one.variant), one.compressed, {name for unit in of.values() for name in unit.params})
            for one, of in zip(made, served, strict=True)
        ]
        recordings = self.trial.lower(asked)
        return [
            _Sketched(Sketch.of(recording or Recording(), self.prices), examples)
            for recording, examples in zip(recordings, served, strict=True)
        ]

    def _examples(self, made: _Made) -> dict[str, Unit]:
        """By site, a unit of layers that are alike, as they are and as they are made."""
        pairs, units = pairs_of(made.variant), {unit.site: unit for unit in self.units}
        kinds: dict[str, Hashable] = {}
        for site in self.plain.sites:
            if site.name in units and not made.errors.keys().isdisjoint(site.params):
                alike = [made_alike(made.weights.get((name, pairs), {})) for name in site.params]
                kinds[site.name] = units[site.name].around, tuple(alike)
        return {site: units[example] for site, example in examples(kinds).items()}

    def _candidates(self, made: _Made, sketched: _Sketched) -> list[tuple[Unit, Candidate]]:
        """Of what is ``made``, by these kernels or nearly these."""
        found, feeders = [], Feeders.found(sketched.kernels)
        name, pairs = named(made.variant), pairs_of(made.variant)
        for unit in self.units:
            errors = [made.errors[param] for param in unit.params if param in made.errors]
            example = sketched.examples.get(unit.site)
            if errors and example is not None:
                candidate = example.candidate(sketched.kernels, feeders, name, pairs, math.hypot(*errors))
                if candidate is not None:
                    found.append((unit, candidate))
        return found

    def saved(self, variant: Compression) -> dict[str, float]:
        """Seconds of each site at which the variant, already taken, is faster."""
        pairs, found = pairs_of((variant,)), {}
        for site, (exact, *others) in self.candidates.items():
            for c in others:
                if (c.pass_name, c.options) == (variant.name, pairs):
                    found[site] = _seconds(exact) - _seconds(c)
        return {site: seconds for site, seconds in found.items() if seconds > 0}


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


def _seconds(candidate: Candidate) -> float:
    assert candidate.latency is not None, "offers have times, measured or predicted"
    return candidate.latency.seconds


def _measured(plain: Compiled) -> dict[str, list[Candidate]]:
    """The dense candidates at the times that they took."""
    times = plain.latencies()
    return {
        site.name: [replace(dense(site), latency=latency)] for site, latency in zip(plain.sites, times, strict=True)
    }
