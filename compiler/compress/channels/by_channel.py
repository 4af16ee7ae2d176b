"""Channels that go, as the options of ``passes={"sparsity": {"pattern": "channel", …}}`` say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.fx import GraphModule, Node

from effc.compiler.compress.channels.remove import remove_channels
from effc.compiler.compress.channels.removed import Removed
from effc.passes.sparsity import Sparsify


@dataclass(frozen=True)
class ByChannel:
    """A step of a graph's compression: it has fewer channels behind it."""

    options: Sparsify

    def remove(self, gm: GraphModule, names: Mapping[Node, str], values: Mapping[Node, Tensor]) -> Removed:
        """See `remove_channels`."""
        return remove_channels(gm, names, values, self.options)
