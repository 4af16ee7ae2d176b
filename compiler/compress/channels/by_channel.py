"""Channels that go, or stand elsewhere, as the options of ``passes={"sparsity": …}`` say."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.fx import GraphModule, Node

from effc.compiler.compress.channels.arrange import arrange
from effc.compiler.compress.channels.arranged import Arranged
from effc.compiler.compress.channels.remove import remove_channels
from effc.compiler.compress.channels.removed import Removed
from effc.compiler.compress.channels.zeros import remove_needless
from effc.passes.sparsity import Sparsify


@dataclass(frozen=True)
class Removal(ABC):
    """A step of a graph's compression: it has fewer channels behind it, or others in their places."""

    options: Sparsify

    @abstractmethod
    def remove(self, gm: GraphModule, names: Mapping[Node, str], values: Mapping[Node, Tensor]) -> Removed | Arranged:
        """Rewrite ``gm`` in place. ``names`` and ``values``: of its inputs that are parameters."""


class ByChannel(Removal):
    """As many as are asked for: see `remove_channels`."""

    def remove(self, gm: GraphModule, names: Mapping[Node, str], values: Mapping[Node, Tensor]) -> Removed:
        return remove_channels(gm, names, values, self.options)


class ByNeed(Removal):
    """Those that nothing needs: see `remove_needless`."""

    def remove(self, gm: GraphModule, names: Mapping[Node, str], values: Mapping[Node, Tensor]) -> Removed:
        return remove_needless(gm, names, values, self.options)


class ByOrder(Removal):
    """None: they are put in order: see `arrange`."""

    def remove(self, gm: GraphModule, names: Mapping[Node, str], values: Mapping[Node, Tensor]) -> Arranged:
        return arrange(gm, names, values, self.options)
