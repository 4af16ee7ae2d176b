"""Factors made as the options of ``passes={"low_rank": …}`` say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from torch import Tensor

from effc.compiler.compress.by_options import ByOptions
from effc.compiler.compress.compressor import Groups
from effc.compiler.compress.form import Form
from effc.compiler.compress.low_rank.factorize import Choice, Spectra, choose, factorize
from effc.compiler.compress.low_rank.layer import Layer
from effc.compiler.compress.low_rank.ranks import MULTIPLE, Kind
from effc.compiler.compress.low_rank.rewrite import FactorRewriter
from effc.compiler.compress.sites import WeightSite
from effc.compiler.compress.stored import StoredWeight, sampled_digest
from effc.passes.low_rank import LowRank

#: What convolutions with a window become.
_FILTERS: Mapping[Kind, str] = {"tucker": "windows between factors of channels", "separable": "one-way filters"}


class ByRank(ByOptions[LowRank]):
    """`Forms` of the weights that ``options`` fit. Ranks are chosen once for a weight, by the first graph that holds it: those of other
    graphs, and of new values, are the same.
    """

    rewriter = FactorRewriter

    def __init__(self, options: LowRank) -> None:
        super().__init__(options)
        self._chosen: dict[str, Choice | None] = {}

    def refusal(self, site: WeightSite, weight: Tensor) -> str:
        if self.options.skips(site.name):
            return "option 'skip' names it"
        if len(site.kinds) > 1 and "convolution" in site.kinds:
            return "a convolution and another operation read it"
        layer = Layer.of(site, weight)
        if layer.convolution and layer.weight.shape[1] == 1:
            return "each of its output channels meets one input channel, so there is no rank to lower"
        if self.options.rank is None and layer.full_rank <= MULTIPLE:
            return f"its rank is {MULTIPLE} at most"
        seen = self.options.statistics(site.name) is not None
        if self.options.method == "output" and site.kinds != {"embedding"} and not seen:
            return "the calibration has not seen it"
        return ""

    def of(self, groups: Groups, weights: Mapping[str, Tensor]) -> Mapping[str, StoredWeight[Form]]:
        layers = {site.name: Layer.of(site, weights[site.name]) for group in groups for site in group}
        spectra = Spectra(layers, self.options)
        new = [g for group in groups if (g := [site.name for site in group if site.name not in self._chosen])]
        if new:
            self._chosen |= choose(new, spectra, self.options)
        taken = list(dict.fromkeys(c for name in layers if (c := self._chosen[name]) is not None))
        found = factorize(taken, spectra, {name: w.dtype for name, w in weights.items()})
        return {name: StoredWeight(form, sampled_digest(weights[name])) for name, form in found.items()}

    def summary(self, taken: Sequence[WeightSite]) -> str:
        chosen = {c for site in taken if (c := self._chosen[site.name]) is not None}
        sizes = [size for _, ranks in chosen for size in ranks.sizes]
        spread = f" of ranks {min(sizes)} to {max(sizes)}" if sizes else ""
        shared = sum(len(names) for names, _ in chosen if len(names) > 1)
        kinds = Counter(ranks.kind for _, ranks in chosen)
        filters = "".join(f", {kinds[kind]} are {what}" for kind, what in _FILTERS.items() if kinds[kind])
        return f"low_rank: {len(taken)} weights are products{spread}, {shared} of them share a factor{filters}"
