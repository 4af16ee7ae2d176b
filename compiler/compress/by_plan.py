"""Quantized weights that a plan holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from effc.compiler.compress.sites import WeightSite
from effc.compiler.compress.stored import StoredWeight, sampled_digest


class ByPlan:
    """`Forms` from ``stored``, by parameter name."""

    def __init__(self, stored: Mapping[str, StoredWeight]) -> None:
        self.stored = stored

    def refusal(self, site: WeightSite, weight: torch.Tensor) -> str:
        if site.name not in self.stored:
            return "the plan leaves it"
        if sampled_digest(weight) != self.stored[site.name].source:
            return "the plan was made for another weight of this name; make one for this model by effc.plan"
        return ""

    def of(self, sites: Sequence[WeightSite], weights: Mapping[str, torch.Tensor]) -> Mapping[str, StoredWeight]:
        return {site.name: self.stored[site.name] for site in sites}

    def summary(self, taken: Sequence[WeightSite]) -> str:
        return f"plan: {len(taken)} of its {len(self.stored)} compressed weights are in this graph"
