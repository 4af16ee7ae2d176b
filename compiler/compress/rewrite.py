"""``Rewriter``: puts compressed forms in the place of an ATen graph's parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch.fx import GraphModule, Node

from effc.compiler.capture.nodes import Known
from effc.compiler.compress.form import Form
from effc.compiler.compress.sites import WeightSite
from effc.compiler.compress.stored import StoredWeight
from effc.compiler.compress.writer import constant


@dataclass
class Rewritten:
    """What a graph holds since it was rewritten: ``constants`` (node -> name), their ``tensors`` by name, and what is ``known`` of them."""

    constants: dict[Node, str] = field(default_factory=dict)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    known: Known = field(default_factory=Known)


class Rewriter(ABC):
    """Rewrites sites of ``gm`` in place, all to forms of one kind."""

    def __init__(self, gm: GraphModule) -> None:
        self.gm = gm
        self.made = Rewritten()

    @abstractmethod
    def write(self, site: WeightSite, stored: StoredWeight[Form]) -> None:
        """Put ``stored`` in the place of the site's parameter."""

    def hold(self, site: WeightSite, parts: Mapping[str, torch.Tensor]) -> dict[str, Node]:
        """The constants of a site by role."""
        found = {}
        for role, tensor in parts.items():
            name = f"{site.name}:{role}"
            found[role], self.made.tensors[name] = constant(self.gm, role, tensor, site.param)
            self.made.constants[found[role]] = name
        return found
