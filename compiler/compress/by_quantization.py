"""Quantized weights made as the options of ``passes={"quantize": …}`` say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from effc.compiler.compress.activations import ActivationRange
from effc.compiler.compress.by_options import ByOptions
from effc.compiler.compress.compressor import Groups
from effc.compiler.compress.inputs import Inputs, check_fit
from effc.compiler.compress.quantized import QuantizedWeight
from effc.compiler.compress.quantized_rewrite import QuantizedRewriter
from effc.compiler.compress.recipe import quantize
from effc.compiler.compress.sites import WeightSite, left_out
from effc.compiler.compress.stored import StoredWeight, sampled_digest
from effc.compiler.ir.quantization import Recipe
from effc.passes.quantize import Quantize

_ACTIVATIONS = {
    "float": "",
    "token": ", activations int8 by rows",
    "tensor": ", activations uint8 by calibrated ranges",
}


class ByQuantization(ByOptions[Quantize]):
    """`Forms` of every weight that ``options`` fit."""

    rewriter = QuantizedRewriter

    def refusal(self, site: WeightSite, weight: torch.Tensor) -> str:
        scheme = self.options.scheme
        reason = left_out(site, self.options)
        if reason:
            return reason
        if "convolution" in site.kinds and scheme.activations != "tensor":
            return "a convolution gains only where its activations are bytes too: activations='tensor'"
        if scheme.group and site.width % scheme.group:
            return f"groups of {scheme.group} do not divide its sums of {site.width}"
        if (
            scheme.activations == "tensor"
            and site.kinds != {"embedding"}
            and self.options.statistics(site.name) is None
        ):
            return "the calibration has not seen it"
        if site.in_groups and (self.options.smoothing != "none" or self.options.rounding != "nearest"):
            return "of a convolution in groups, calibration does not tell which channels meet which weights"
        return ""

    def of(self, groups: Groups, weights: Mapping[str, torch.Tensor]) -> Mapping[str, StoredWeight[QuantizedWeight]]:
        return {name: stored for group in groups for name, stored in self._of_group(group, weights).items()}

    def _of_group(
        self, sites: Sequence[WeightSite], weights: Mapping[str, torch.Tensor]
    ) -> Mapping[str, StoredWeight[QuantizedWeight]]:
        channels = {site.name: site.by_channels(weights[site.name]) for site in sites}
        statistics = None if sites[0].in_groups else self.options.statistics(sites[0].name)
        found = quantize(channels, self.options.scheme, self._recipe(sites), statistics)
        return {
            site.name: StoredWeight(
                found[site.name], sampled_digest(weights[site.name]), self._range(site, found[site.name])
            )
            for site in sites
        }

    def _recipe(self, sites: Sequence[WeightSite]) -> Recipe:
        """Rows that are only looked up meet no activation, which smoothing and GPTQ look at, and factors none that calibration has seen:
        they are rounded to the nearest.
        """
        recipe = self.options.recipe
        unseen = all(site.kinds == {"embedding"} or site.param.op == "get_attr" for site in sites)
        return replace(recipe, smoothing="none", rounding="nearest") if unseen else recipe

    def summary(self, taken: Sequence[WeightSite]) -> str:
        scheme = self.options.scheme
        grain = f"groups of {scheme.group}" if scheme.group else "channels"
        return f"quantize: {len(taken)} weights are {scheme.weights} by {grain}{_ACTIVATIONS[scheme.activations]}"

    def _range(self, site: WeightSite, weight: QuantizedWeight) -> ActivationRange | None:
        """Of the activation as it meets ``weight``: divided by its smoothing."""
        statistics = self.options.statistics(site.name) if self.options.scheme.activations == "tensor" else None
        if statistics is None:
            return None
        if site.in_groups:  # of all groups, which `quantize` is not told
            channels = site.uses[0].activation.meta["val"].shape[site.uses[0].channels]
            check_fit(statistics, site.name, site.rows, channels)
        smoothed = Inputs.of(statistics, site.name).over(weight.factors(len(statistics.least)))
        return ActivationRange.of(smoothed.least, smoothed.greatest)
