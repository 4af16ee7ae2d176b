"""Compressing the weights of a captured graph, by options or by a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.fx import GraphModule, Node

from effc.compiler.capture.nodes import drop_unread
from effc.compiler.compress.rewrite import Rewriter, Rewritten, held_parts
from effc.compiler.compress.sites import WeightSite, find_sites, root_of
from effc.compiler.compress.stored import StoredWeight


class Forms(Protocol):
    """Where compressed weights come from."""

    def refusal(self, site: WeightSite, weight: torch.Tensor) -> str:
        """Why the site's weight stays as it is, or ``""``."""
        ...

    def of(self, sites: Sequence[WeightSite], weights: Mapping[str, torch.Tensor]) -> Mapping[str, StoredWeight]:
        """The compressed weights, by name, of sites that share an activation."""
        ...

    def summary(self, taken: Sequence[WeightSite]) -> str:
        """For the report."""
        ...


@dataclass(frozen=True)
class Compressed:
    """A graph's compression: ``values`` of its parameters, ``groups`` of sites that share an activation, ``weights`` by name;
    ``notes``: for the report.
    """

    forms: Forms
    values: Mapping[Node, torch.Tensor]
    groups: Sequence[Sequence[WeightSite]]
    weights: Mapping[str, StoredWeight]
    rewritten: Rewritten
    notes: Sequence[str]

    @property
    def sites(self) -> list[WeightSite]:
        return [site for group in self.groups for site in group]

    @property
    def sources(self) -> list[Node]:
        """The parameters that the compressed forms were made from."""
        return [site.param for site in self.sites]

    def renew(self, tensors: Sequence[torch.Tensor]) -> str:
        """Compress ``tensors``, new values of ``sources``, into the constants that the graph holds; why that cannot be, or ``""``."""
        values = dict(zip(self.sources, tensors, strict=True))
        refused = [reason for site in self.sites if (reason := self.forms.refusal(site, values[site.param]))]
        if refused:
            return refused[0]
        for group in self.groups:
            for name, stored in self.forms.of(group, {s.name: values[s.param] for s in group}).items():
                for role, tensor in held_parts(stored.weight).items():
                    self.rewritten.tensors[f"{name}:{role}"].copy_(tensor)
        return ""


def compress(
    gm: GraphModule, params: Mapping[Node, str], values: Mapping[Node, torch.Tensor], forms: Forms
) -> Compressed:
    """Rewrite ``gm`` in place. ``params``: its inputs that are parameters, by name; ``values``: their tensors.

    OptionError: a weight that cannot be quantized (NaN, or groups that do not divide it), or a calibration that is not its model's.
    """
    sites, kept = find_sites(params)
    taken = []
    for site in sites:
        reason = forms.refusal(site, values[site.param])
        if reason:
            kept[site.name] = reason
        else:
            taken.append(site)
    rewriter = Rewriter(gm)
    groups, weights = _together(taken), dict[str, StoredWeight]()
    for group in groups:
        weights.update(forms.of(group, {site.name: values[site.param] for site in group}))
        for site in group:
            rewriter.quantize(site, weights[site.name].weight, weights[site.name].range)
    drop_unread(gm.graph)
    notes = [forms.summary(taken), *(f"{name} stays as it is: {reason}" for name, reason in kept.items() if reason)]
    return Compressed(forms, values, groups, weights, rewriter.made, notes)


def _together(sites: Sequence[WeightSite]) -> list[list[WeightSite]]:
    """Sites that read one activation, and nothing else, stand together."""
    groups: dict[object, list[WeightSite]] = {}
    for site in sites:
        linear = [use for use in site.uses if use.kind == "linear"]
        alone = len(site.uses) != 1 or len(linear) != 1
        groups.setdefault(site.name if alone else root_of(linear[0].activation, site.width), []).append(site)
    return list(groups.values())
