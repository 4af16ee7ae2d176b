"""Compressed variants of a model as candidates for its sites: each is compiled whole, its kernels timed, its errors estimated.

So a candidate is the kernel that code generation really makes of it, fused as it would be, at a measured time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from effc.compiler.compress.form import Form
from effc.compiler.compress.pruning.detect import best_fit
from effc.compiler.compress.stored import StoredWeight
from effc.compiler.ir.candidate import Candidate, dense
from effc.compiler.ir.compression import Compression, compressions
from effc.compiler.ir.options import Options
from effc.compiler.ir.pattern import Pattern
from effc.compiler.ir.site import Site
from effc.feeders import Feeders
from effc.passes.low_rank import LowRank
from effc.passes.quantize import Quantize
from effc.passes.sparsity import Sparsify
from effc.proxies import Sensitivity, output_error
from effc.trial import Compiled, Trial

#: Patterns that a trial prunes by, and their share of zeros.
_PATTERNS: Sequence[tuple[str, float | None]] = (("16x1", 0.5), ("2:4", None))
#: How one candidate is told from another of the same pass.
Pairs = tuple[tuple[str, Any], ...]


def offered(options: Options, trial: Trial) -> list[Compression]:
    """The variants worth a trial: of each pass what ``passes`` fixes, none where it switches the pass off, else some of each kind."""
    found: list[Compression] = []
    for name, variants in _worth_a_trial(trial).items():
        choice = dict(options.passes).get(name, True)
        if isinstance(choice, tuple):
            found.append(
                _weight_by_weight(replace(compressions()[name](**dict(choice)), calibration=trial.calibration))
            )
        elif choice is not False:
            found += variants
    return found


def _worth_a_trial(trial: Trial) -> Mapping[str, list[Compression]]:
    """By pass, where options say nothing."""
    calibration = trial.calibration
    zeros = tuple(name for name, p in trial.model.named_parameters() if not bool(p.any()))
    held = any(p.dim() > 1 and best_fit(p) is not None for p in trial.model.parameters())
    return {
        Sparsify.name: [Sparsify(keep_channels=True)] if held else _pruning(trial, zeros),
        Quantize.name: [
            Quantize("int8"),
            Quantize("int8", activations="token", smoothing="smoothquant", calibration=calibration),
            Quantize("int8", activations="tensor", calibration=calibration),
            Quantize("int4", smoothing="awq", rounding="gptq", calibration=calibration),
        ],
        LowRank.name: [
            LowRank(rank_ratio=ratio, method="output", calibration=calibration, skip=zeros) for ratio in (0.375, 0.25)
        ],
    }


def _weight_by_weight(fixed: Compression) -> Compression:
    """As a plan may decide for each weight alone. OptionError: what it cannot."""
    if not isinstance(fixed, Sparsify) or (fixed.prunes and not fixed.removes):
        return fixed
    if fixed.removes:
        raise fixed.refused(
            "a plan decides for each weight alone, and channels go from all weights that are coupled: compile with these options instead "
            "of a plan, or choose another pattern"
        )
    return replace(fixed, keep_channels=True)


def _pruning(trial: Trial, skip: Sequence[str]) -> list[Compression]:
    """By each pattern that divides a weight, of the weights that it divides."""
    weights = {name: p.shape for name, p in trial.model.named_parameters() if p.dim() > 1 and name not in skip}
    found: list[Compression] = []
    for pattern, share in _PATTERNS:
        parsed = Pattern.parse(pattern)
        undivided = [name for name, shape in weights.items() if parsed.misfit(name, shape)]
        if len(undivided) < len(weights):
            skipped = (*skip, *undivided)
            found.append(Sparsify(pattern, share, "sparsegpt", calibration=trial.calibration, skip=skipped))
    return found


@dataclass(frozen=True)
class Offers:
    """``candidates`` by site, the dense one first; ``weights``: of each parameter in each of its compressed forms."""

    candidates: Mapping[str, list[Candidate]]
    weights: Mapping[tuple[str, Pairs], StoredWeight[Form]]


def offers(trial: Trial, plain: Compiled, options: Options, variants: Sequence[Compression]) -> Offers:
    """Compile and time each variant beside ``plain``, the exact model."""
    compiled = [trial.compile(options.changed(passes=_passes(options, v))) for v in variants]
    trial.time(plain, *compiled)
    found = _measured(plain)
    weights: dict[tuple[str, Pairs], StoredWeight[Form]] = {}
    units = _units(plain)
    sensitivity = Sensitivity(trial)
    for variant, one in zip(variants, compiled, strict=True):
        pairs, feeders = pairs_of(variant), Feeders.found(one)
        errors: dict[str, float] = {}
        for compressed in one.recording.compressed:
            (stage,) = compressed.stages
            for site in stage.sites:
                stored, matrix = stage.weights[site.name], site.matrix(compressed.values[site.param])
                estimate = output_error(stored.form, matrix, trial.calibration.sites.get(site.name), site.name)
                errors[site.name] = estimate * sensitivity.of(site, stored.form, matrix)
                weights[site.name, pairs] = stored
        for unit in units:
            members = unit.params & errors.keys()
            if members:
                error = math.sqrt(sum(errors[name] ** 2 for name in members))
                found[unit.site].append(unit.candidate(one, feeders, variant.name, pairs, error))
    return Offers(found, weights)


@dataclass(frozen=True)
class _Unit:
    """Weights that are decided on together, for one kernel of the exact model reads them all: the one of ``site``. ``elsewhere``: seconds
    of its other kernels that read them. ``feeders``: of the exact model.
    """

    site: str
    params: frozenset[str]
    elsewhere: float
    feeders: Feeders

    def candidate(self, compiled: Compiled, feeders: Feeders, name: str, pairs: Pairs, error: float) -> Candidate:
        """The kernels of a variant that read these weights, in the place of the site's; with those of its ``feeders`` that the exact model
        has not, less those that only that has.
        """
        kernels, seconds = [], feeders.beyond(self.feeders, self.params)
        elsewhere = self.elsewhere + self.feeders.beyond(feeders, self.params).seconds
        for site, latency in zip(compiled.sites, compiled.latencies(), strict=True):
            if self.params.intersection(_names(site)):
                kernels.append(site)
                seconds = seconds + latency
        return Candidate(
            name,
            tuple((site.spec,) for site in kernels),
            tuple(site.symbols for site in kernels),
            pairs,
            error,
            replace(seconds, seconds=max(seconds.seconds - elsewhere, 0.0)),
        )


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


def _names(site: Site) -> list[str]:
    """Names of the parameters whose forms a kernel reads."""
    return [name.partition(":")[0] for name in site.params]


def pairs_of(variant: Compression) -> Pairs:
    """The options by which a plan names a variant, in plain data."""
    skipped = ("calibration", "skip")
    return tuple(sorted((f.name, getattr(variant, f.name)) for f in fields(variant) if f.name not in skipped))


def _passes(options: Options, variant: Compression) -> dict[str, Any]:
    kept = {name: choice for name, choice in options.arguments()["passes"].items() if name not in compressions()}
    return {**kept, variant.name: {f.name: getattr(variant, f.name) for f in fields(variant)}}


def _measured(plain: Compiled) -> dict[str, list[Candidate]]:
    """The dense candidates at the times that they took."""
    times = plain.latencies()
    return {
        site.name: [replace(dense(site), latency=latency)] for site, latency in zip(plain.sites, times, strict=True)
    }
