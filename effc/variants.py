"""Compressed variants of a model as candidates for its sites: each is compiled whole, its kernels timed, its errors estimated.

So a candidate is the kernel that code generation really makes of it, fused as it would be, at a measured time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from effc.compiler.compress.stored import StoredWeight
from effc.compiler.ir.calibration import Calibration
from effc.compiler.ir.candidate import Candidate, Latency, dense
from effc.compiler.ir.options import Options
from effc.compiler.ir.site import Site
from effc.passes.quantize import Quantize
from effc.proxies import Sensitivity, output_error
from effc.trial import Compiled, Trial

#: How one candidate is told from another of the same pass.
Pairs = tuple[tuple[str, Any], ...]


def offered(options: Options, calibration: Calibration) -> list[Quantize]:
    """The variants worth a trial: what ``passes`` fixes, none where it switches quantization off, else one of each kind."""
    choice = dict(options.passes).get("quantize", True)
    if choice is False:
        return []
    if isinstance(choice, tuple):
        return [replace(Quantize(**dict(choice)), calibration=calibration)]
    return [
        Quantize("int8"),
        Quantize("int8", activations="token", smoothing="smoothquant", calibration=calibration),
        Quantize("int8", activations="tensor", calibration=calibration),
        Quantize("int4", smoothing="awq", rounding="gptq", calibration=calibration),
    ]


@dataclass(frozen=True)
class Offers:
    """``candidates`` by site, the dense one first; ``weights``: of each parameter in each of its compressed forms."""

    candidates: Mapping[str, list[Candidate]]
    weights: Mapping[tuple[str, Pairs], StoredWeight]


def offers(trial: Trial, plain: Compiled, options: Options, variants: Sequence[Quantize]) -> Offers:
    """Compile and time each variant beside ``plain``, the exact model."""
    compiled = [trial.compile(options.changed(passes=_passes(options, v))) for v in variants]
    trial.time(plain, *compiled)
    found = _measured(plain)
    weights: dict[tuple[str, Pairs], StoredWeight] = {}
    places, rests = _largest(plain)
    sensitivity = Sensitivity(trial)
    for variant, one in zip(variants, compiled, strict=True):
        times, pairs = _by_parameter(one), pairs_of(variant)
        for compressed in one.recording.compressed:
            for weight_site in compressed.sites:
                name = weight_site.name
                if name not in places or name not in times:
                    continue
                stored = compressed.weights[name]
                statistics = trial.calibration.sites.get(name)
                matrix = weight_site.matrix(compressed.values[weight_site.param])
                error = output_error(stored, matrix, statistics) * sensitivity.of(weight_site, stored, matrix)
                kernels, total = times[name]
                latency = replace(total, seconds=max(total.seconds - rests[name], 0.0))
                weights[name, pairs] = stored
                found[places[name]].append(
                    Candidate(
                        Quantize.name,
                        tuple((site.spec,) for site in kernels),
                        tuple(site.symbols for site in kernels),
                        pairs,
                        error,
                        latency,
                    )
                )
    return Offers(found, weights)


def pairs_of(variant: Quantize) -> Pairs:
    """The options by which a plan names a variant, in plain data."""
    skipped = ("calibration", "skip")
    return tuple(sorted((f.name, getattr(variant, f.name)) for f in fields(variant) if f.name not in skipped))


def _passes(options: Options, variant: Quantize) -> dict[str, Any]:
    kept = {name: choice for name, choice in options.arguments()["passes"].items() if name != Quantize.name}
    return {**kept, Quantize.name: {f.name: getattr(variant, f.name) for f in fields(variant)}}


def _measured(plain: Compiled) -> dict[str, list[Candidate]]:
    """The dense candidates at the times that they took."""
    times = plain.latencies()
    return {
        site.name: [replace(dense(site), latency=latency)] for site, latency in zip(plain.sites, times, strict=True)
    }


def _largest(plain: Compiled) -> tuple[dict[str, str], dict[str, float]]:
    """The site at which a parameter is decided on: of those that read it the slowest; and the seconds of the others."""
    times = {site.name: latency.seconds for site, latency in zip(plain.sites, plain.latencies(), strict=True)}
    found: dict[str, str] = {}
    for site in plain.sites:
        if site.param and times[site.name] > times.get(found.get(site.param, ""), 0.0):
            found[site.param] = site.name
    rests = {
        param: sum(times[site.name] for site in plain.sites if site.param == param) - times[place]
        for param, place in found.items()
    }
    return found, rests


def _by_parameter(compiled: Compiled) -> dict[str, tuple[list[Site], Latency]]:
    """The kernels that read the forms of each parameter, and their time together."""
    found: dict[str, tuple[list[Site], Latency]] = defaultdict(lambda: ([], Latency(0.0)))
    for site, latency in zip(compiled.sites, compiled.latencies(), strict=True):
        name = site.param.partition(":")[0]
        kernels, total = found[name]
        found[name] = ([*kernels, site], total + latency)
    return dict(found)
