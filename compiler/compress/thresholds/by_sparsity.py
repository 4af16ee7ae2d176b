"""Thresholds made as the options of ``passes={"activation_sparsity": …}`` say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.fx import Graph, Node

from effc.compiler.compress.by_options import ByOptions
from effc.compiler.compress.compressor import Groups
from effc.compiler.compress.inputs import Inputs, check_fit
from effc.compiler.compress.sites import WeightSite, left_out
from effc.compiler.compress.stored import StoredWeight, sampled_digest
from effc.compiler.compress.thresholds.form import Thresholded
from effc.compiler.compress.thresholds.rewrite import ThresholdRewriter
from effc.compiler.compress.thresholds.roles import GatedMlp, by_product, gated_mlps, projections
from effc.compiler.compress.thresholds.threshold import cats, chess
from effc.passes.activation_sparsity import SparsifyActivations

#: Of the factors of products that leave weights out.
_DTYPES = (torch.float32, torch.bfloat16)


class BySparsity(ByOptions[SparsifyActivations]):
    """`Forms` of the weights whose activations get zeros. What a layer is to others is read from each graph before it is rewritten."""

    rewriter = ThresholdRewriter

    def __init__(self, options: SparsifyActivations) -> None:
        super().__init__(options)
        self._read: set[Graph] = set()
        self._mlps: dict[Node, GatedMlp] = {}
        self._attention: set[Node] = set()

    def refusal(self, site: WeightSite, weight: Tensor) -> str:
        reason = left_out(site, self.options)
        if reason:
            return reason
        if site.kinds != {"linear"} or len(site.uses) != 1:
            return "only linear layers that are used once are read in parts"
        product = site.uses[0].node
        if product.meta["val"].dtype != weight.dtype or weight.dtype not in _DTYPES:  # they differ under autocast
            return "only kernels of float32 and of bfloat16 leave out what zeros make needless"
        self._read_graph(product.graph)
        if product not in self._mlps and not self._by_input(product):
            beside = " and no projection of attention" if self.options.method == "chess" else ""
            return f"it is no part of a gated MLP{beside}"
        return "" if self.options.statistics(site.name) is not None else "the calibration has not seen it"

    def of(self, groups: Groups, weights: Mapping[str, Tensor]) -> Mapping[str, StoredWeight[Thresholded]]:
        sites = {site.uses[0].node: site for group in groups for site in group}
        forms: dict[str, Thresholded] = {}
        for group in groups:
            alike = [site for site in group if self._by_input(site.uses[0].node)]
            if alike:
                shared = cats(self._rows(alike[0]), self.options.sparsity)
                forms |= {
                    s.name: Thresholded(s.matrix(weights[s.name]).float(), shared, None, self.options.sparsity)
                    for s in alike
                }
        for mlp in {self._mlps[product]: None for product in sites if product in self._mlps}:
            if {mlp.gate, mlp.up, mlp.down} <= sites.keys():
                forms |= self._of_mlp(mlp, sites, weights)
        return {name: StoredWeight(form, sampled_digest(weights[name])) for name, form in forms.items()}

    def summary(self, taken: Sequence[WeightSite]) -> str:
        mlps = sum(site.uses[0].node in self._mlps for site in taken) // 3
        others = (
            f" and the inputs of {len(taken) - 3 * mlps} projections of attention"
            if self.options.method == "chess"
            else ""
        )
        return f"activation_sparsity: {mlps} gated MLPs{others} have {self.options.sparsity:.0%} zeros by {self.options.method}"

    def _of_mlp(
        self, mlp: GatedMlp, sites: Mapping[Node, WeightSite], weights: Mapping[str, Tensor]
    ) -> dict[str, Thresholded]:
        gate, up, down = (sites[product] for product in (mlp.gate, mlp.up, mlp.down))
        o, matrices = self.options, {s.name: s.matrix(weights[s.name]).float() for s in (gate, up, down)}
        rows = self._rows(gate)
        activated = mlp.activation(rows @ matrices[gate.name].T)
        threshold = (
            cats(activated, o.sparsity)
            if o.method == "cats"
            else chess(activated, rows @ matrices[up.name].T, o.sparsity)
        )
        return {
            name: Thresholded(matrix, threshold if name == down.name else None, mlp, o.sparsity)
            for name, matrix in matrices.items()
        }

    def _rows(self, site: WeightSite) -> Tensor:
        """Of the activation that the weight met in calibration."""
        statistics = self.options.statistics(site.name)
        assert statistics is not None, "refused otherwise"
        check_fit(statistics, site.name, site.rows, site.width)
        return Inputs.of(statistics, site.name).sample

    def _by_input(self, product: Node) -> bool:
        return self.options.method == "chess" and product in self._attention

    def _read_graph(self, graph: Graph) -> None:
        if graph in self._read:
            return
        self._read.add(graph)
        self._mlps |= by_product(gated_mlps(graph))
        self._attention |= set(projections(graph)) - self._mlps.keys()
