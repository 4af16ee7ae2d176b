"""Which weights may become factors within an error: told from what any factors lose at least, before one is made."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Reach:
    """Up to an error ``most`` of the model's outputs for each weight. ``worth``: whether some weights, by name, are worth a look."""

    most: float
    trial: Trial
    sensitivity: Sensitivity
    worth: Callable[[Collection[str]], bool]

    def narrowed(self, variants: Sequence[Compression]) -> list[Compression]:
        """``variants``; of those that factorize by shares of the rank, only at the weights within reach, and none where these are not worth
        it.
        """
        ranked = [v for v in variants if isinstance(v, LowRank) and v.rank_ratio is not None]
        if self.most == math.inf or not ranked:
            return list(variants)
        reached = self._reached(ranked)
        found: list[Compression] = []
        for variant in variants:
            if variant not in ranked:
                found.append(variant)
            elif self.worth(names := reached[ranked.index(variant)]):
                found.append(only(variant, names, self.trial))
        return found

    def _reached(self, variants: Sequence[LowRank]) -> list[set[str]]:
        """The weights of each variant."""
        found = [set[str]() for _ in variants]
        for name, (site, weight) in self.trial.sites().items():
            fitting = [i for i, v in enumerate(variants) if not ByRank(v).refusal(site, weight)]
            if not fitting or not bool(weight.isfinite().all()):
                continue
            layer, seen = Layer.of(site, weight), self.trial.calibration.sites.get(name)
            energies = Energies(layer, None if seen is None else Inputs.of(seen, name))
            shown = self.sensitivity.of(site, site.matrix(weight))
            most = self.most / shown if shown else math.inf
            for i in fitting:
                choice = asked_ranks(name, layer, variants[i])
                if choice is not None and energies.least(choice[1], enough=most) <= most:
                    found[i].add(name)
        return found
