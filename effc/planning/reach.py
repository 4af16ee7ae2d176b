"""Which weights may become factors within an error: told from what any factors lose at least, before one is made."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from effc.compiler.compress.inputs import Inputs
from effc.compiler.compress.low_rank.by_rank import ByRank
from effc.compiler.compress.low_rank.factorize import asked_ranks
from effc.compiler.compress.low_rank.layer import Layer
from effc.compiler.compress.low_rank.least import Energies
from effc.compiler.ir.compression import Compression
from effc.passes.low_rank import LowRank
from effc.planning.sensitivity import Sensitivity
from effc.planning.trial import Trial
from effc.planning.variants import only


def within_reach(
    variants: Sequence[Compression],
    fixed: Collection[Compression],
    most: float,
    trial: Trial,
    sensitivity: Sensitivity,
) -> list[Compression]:
    """``variants``, those that factorize only of the weights that may lose at most ``most`` by it, in the model's outputs; without those
    that are left with none. As they are where options fix them, or ranks are no share of the full one.
    """
    bounded = [v for v in variants if isinstance(v, LowRank) and v not in fixed and v.rank_ratio is not None]
    if most == math.inf or not bounded:
        return list(variants)
    names = _reachable(bounded, most, trial, sensitivity)
    found: list[Compression] = []
    for variant in variants:
        if variant not in bounded:
            found.append(variant)
        elif reached := names[bounded.index(variant)]:
            found.append(only(variant, reached, trial))
    return found


def _reachable(variants: Sequence[LowRank], most: float, trial: Trial, sensitivity: Sensitivity) -> list[set[str]]:
    """Of each variant, the weights."""
    found = [set[str]() for _ in variants]
    for name, (site, weight) in trial.sites().items():
        chosen = [(reached, v) for reached, v in zip(found, variants, strict=True) if not ByRank(v).refusal(site, weight)]
        if not chosen or not bool(weight.isfinite().all()):
            continue
        layer, seen = Layer.of(site, weight), trial.calibration.sites.get(name)
        energies = Energies(layer, None if seen is None else Inputs.of(seen, name))
        shown = sensitivity.of(site, site.matrix(weight))
        for reached, variant in chosen:
            ranks = asked_ranks(name, layer, variant)
            if ranks is not None and energies.least(ranks[1], most / shown if shown else math.inf) * shown <= most:
                reached.add(name)
    return found
