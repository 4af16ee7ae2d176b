"""Compressed weights that are there already: a plan holds them, or they were made of the same graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from effc.compiler.compress.compressor import Compressed, Groups
from effc.compiler.compress.form import Form
from effc.compiler.compress.rewrite import Rewriter
from effc.compiler.compress.sites import WeightSite
from effc.compiler.compress.stored import StoredWeight, sampled_digest
from effc.compiler.ir.calibration import Calibration


class ByPlan:
    """`Forms` from ``stored``, by parameter name, all of the kind that ``rewriter`` writes."""

    def __init__(self, stored: Mapping[str, StoredWeight[Form]], rewriter: type[Rewriter]) -> None:
        self.stored, self.rewriter = stored, rewriter

    def refusal(self, site: WeightSite, weight: torch.Tensor) -> str:
        if site.name not in self.stored:
            return "the plan leaves it"
        if sampled_digest(weight) != self.stored[site.name].source:
            return "the plan was made for another weight of this name; make one for this model by effc.plan"
        return ""

    def of(self, groups: Groups, weights: Mapping[str, torch.Tensor]) -> Mapping[str, StoredWeight[Form]]:
        return {name: self.stored[name] for name in weights}

    def narrowed(self, narrow: Callable[[Calibration], Calibration]) -> ByPlan:
        return self

    def summary(self, taken: Sequence[WeightSite]) -> str:
        return f"plan: {len(taken)} of its {len(self.stored)} compressed weights are in this graph"


def as_made(graphs: Sequence[Compressed]) -> list[ByPlan]:
    """The steps by which graphs, or pieces of them, become what ``graphs`` are; these have gone through the same steps, none of which took
    channels.
    """
    return [
        ByPlan({n: w for stage in stages for n, w in stage.weights.items()}, stages[0].forms.rewriter)
        for stages in zip(*(compressed.stages for compressed in graphs), strict=True)
    ]
