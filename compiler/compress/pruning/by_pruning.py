"""Pruned weights made, or found, as the options of ``passes={"sparsity": …}`` say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from effc.compiler.compress.by_options import ByOptions
from effc.compiler.compress.compressor import Groups
from effc.compiler.compress.pruning.detect import Fit, best_fit
from effc.compiler.compress.pruning.fitting import kept_whole, unpruned
from effc.compiler.compress.pruning.prune import prune
from effc.compiler.compress.pruning.pruned import PrunedWeight, sparsity_of
from effc.compiler.compress.pruning.rewrite import PrunedRewriter
from effc.compiler.compress.sites import WeightSite
from effc.compiler.compress.stored import StoredWeight, sampled_digest
from effc.passes.sparsity import Sparsify


class ByPruning(ByOptions[Sparsify]):
    """`Forms` of the weights that are pruned."""

    rewriter = PrunedRewriter

    def refusal(self, site: WeightSite, weight: Tensor) -> str:
        return unpruned(self.options, site)

    def of(self, groups: Groups, weights: Mapping[str, Tensor]) -> Mapping[str, StoredWeight[PrunedWeight]]:
        return {name: stored for group in groups for name, stored in self._of_group(group, weights).items()}

    def summary(self, taken: Sequence[WeightSite]) -> str:
        o = self.options
        return f"sparsity: {len(taken)} weights are pruned to {o.chosen}, {o.share:.0%} zeros, by {o.method}"

    def _of_group(
        self, sites: Sequence[WeightSite], weights: Mapping[str, Tensor]
    ) -> dict[str, StoredWeight[PrunedWeight]]:
        o = self.options
        channels = {site.name: site.by_channels(weights[site.name]) for site in sites}
        found = prune(channels, o.chosen, o.share, o.method, self.options.statistics(sites[0].name))
        forms = {
            name: PrunedWeight.made(_last(pruned, weights[name].dtype), o.chosen, o.share)
            for name, pruned in found.items()
        }
        return {name: StoredWeight(form, sampled_digest(weights[name])) for name, form in forms.items()}


class ByZeros(ByOptions[Sparsify]):
    """`Forms` of the weights that hold zeros. Patterns are chosen once for a weight: new values must have zeros there too."""

    rewriter = PrunedRewriter

    def __init__(self, options: Sparsify) -> None:
        super().__init__(options)
        self._fits: dict[str, Fit] = {}
        self._forms: dict[str, PrunedWeight] = {}

    def refusal(self, site: WeightSite, weight: Tensor) -> str:
        reason = kept_whole(self.options, site)
        if reason:
            return reason
        values, known = site.by_channels(weight), self._forms.get(site.name)
        if known is not None:
            fits = known.sparsity.holds(sparsity_of(values.movedim(1, -1), known.pattern))
            what = f"lost the zeros of {known.pattern} that it had" if known.sparsity.m else "fewer zeros than"
            return "" if fits else f"{site.name} has {what} when it was compiled: compile the model again"
        if not bool(values.any()):
            return "it holds zeros only"
        fit = best_fit(values)
        if fit is None:
            return "it holds too few zeros"
        self._fits[site.name] = fit
        return ""

    def of(self, groups: Groups, weights: Mapping[str, Tensor]) -> Mapping[str, StoredWeight[PrunedWeight]]:
        return {
            site.name: StoredWeight(self._form(site, weights[site.name]), sampled_digest(weights[site.name]))
            for group in groups
            for site in group
        }

    def summary(self, taken: Sequence[WeightSite]) -> str:
        patterns = Counter(str(self._forms[site.name].pattern) for site in taken)
        return f"sparsity: {len(taken)} weights hold zeros" + "".join(f", {n} as {p}" for p, n in patterns.items())

    def _form(self, site: WeightSite, weight: Tensor) -> PrunedWeight:
        channels, known = site.by_channels(weight), self._forms.get(site.name)
        values = _last(channels, weight.dtype)
        if known is not None:
            return PrunedWeight(values, known.pattern, known.sparsity)
        return self._forms.setdefault(site.name, PrunedWeight.existing(values, self._fits[site.name].pattern))


def _last(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """``[out, channels, window…]`` as ``[out, window…, channels]``."""
    return weight.to(dtype).movedim(1, -1).contiguous()
