"""Factors made as the options of ``passes={"low_rank": …}`` say."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from effc.compiler.compress.compressor import Groups
from effc.compiler.compress.low_rank.factorize import Choice, Spectra, choose, factorize
from effc.compiler.compress.low_rank.factors import Factors
from effc.compiler.compress.low_rank.ranks import MULTIPLE
from effc.compiler.compress.low_rank.rewrite import FactorRewriter
from effc.compiler.compress.sites import WeightSite
from effc.compiler.compress.stored import StoredWeight, sampled_digest
from effc.compiler.ir.calibration import Calibration
from effc.passes.low_rank import LowRank


class ByRank:
    """`Forms` of the weights that ``options`` fit. Ranks are chosen once for a weight, by the first graph that holds it: those of other
    graphs, and of new values, are the same.
    """

    rewriter = FactorRewriter

    def __init__(self, options: LowRank) -> None:
        self.options = options
        self._chosen: dict[str, Choice | None] = {}

    def refusal(self, site: WeightSite, weight: Tensor) -> str:
        if self.options.skips(site.name):
            return "option 'skip' names it"
        if "convolution" in site.kinds:
            return "only linear layers and embeddings are factorized"
        if self.options.rank is None and min(site.rows, site.width) <= MULTIPLE:
            return f"its rank is {MULTIPLE} at most"
        seen = self.options.statistics(site.name) is not None
        if self.options.method == "output" and "linear" in site.kinds and not seen:
            return "the calibration has not seen it"
        return ""

    def of(self, groups: Groups, weights: Mapping[str, Tensor]) -> Mapping[str, StoredWeight[Factors]]:
        matrices = {site.name: site.matrix(weights[site.name]) for group in groups for site in group}
        spectra = Spectra(matrices, self.options)
        new = [g for group in groups if (g := [site.name for site in group if site.name not in self._chosen])]
        if new:
            self._chosen |= choose(new, spectra, self.options)
        taken = list(dict.fromkeys(c for name in matrices if (c := self._chosen[name]) is not None))
        found = factorize(taken, spectra, {name: w.dtype for name, w in weights.items()})
        return {name: StoredWeight(form, sampled_digest(weights[name])) for name, form in found.items()}

    def narrowed(self, narrow: Callable[[Calibration], Calibration]) -> ByRank:
        found = copy.copy(self)
        found.options = self.options.narrowed(narrow)
        return found

    def summary(self, taken: Sequence[WeightSite]) -> str:
        chosen = {c for site in taken if (c := self._chosen[site.name]) is not None}
        ranks = [rank for _, rank in chosen]
        spread = f" of ranks {min(ranks)} to {max(ranks)}" if ranks else ""
        shared = sum(len(names) for names, _ in chosen if len(names) > 1)
        return f"low_rank: {len(taken)} weights are products{spread}, {shared} of them share a factor"
