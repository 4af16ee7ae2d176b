"""Writing a graph that has lost channels: smaller constants in the place of parameters, and what makes up for what they do not read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from effc.compiler.compress.channels.removed import Cut, Removed, Slice, Stand
from effc.compiler.compress.channels.slicing import Left, Slicing
from effc.compiler.compress.sites import Use, WeightSite
from effc.compiler.compress.writer import Writer, constant

_aten = torch.ops.aten


class Stands(Protocol):
    """What makes up for channels that go in the layers that read them."""

    def of_layer(self, layer: str, gone: Tensor) -> Stand | None:
        """For the weight ``layer``, which reads ``gone`` (bool, ``[channels]``) no more; None where nothing does."""
        ...


class Rewriting:
    """Of ``gm``, in place."""

    def __init__(self, gm: GraphModule, slicing: Slicing, stands: Stands) -> None:
        self.gm, self.slicing, self.stands = gm, slicing, stands
        self.tensors: dict[Node, Tensor] = {}

    def run(
        self,
        names: Mapping[Node, str],
        values: Mapping[Node, Tensor],
        sites: Sequence[WeightSite],
        notes: Sequence[str],
    ) -> Removed:
        met, out = {}, {}
        for site in sites:
            ours, theirs = self._left(site.param), self._left(site.uses[0].activation)
            channels = next((left for dim, left in theirs.items() if dim == site.uses[0].channels), None)
            if channels is not None:
                met[site.name] = channels.numpy()
            if site.out in ours:
                out[site.name] = ours[site.out].numpy()
        by_param = {site.param: site for site in sites}
        slices = [
            self._slice(param, name, left, values[param], by_param.get(param))
            for param, name in names.items()
            if (left := self._left(param))
        ]
        self.slicing.rewrite(self.gm)
        for made in slices:
            if made.bias is not None:
                for use in by_param[made.source].uses:
                    self._add(use, made.bias)
        return Removed(slices, self.tensors, met, out, notes)

    def _left(self, node: Node) -> Left:
        return self.slicing.left(self.slicing.coupling.of(node))

    def _slice(self, param: Node, name: str, left: Left, value: Tensor, site: WeightSite | None) -> Slice:
        """Put a smaller constant in the place of ``param``, and make a bias where one makes up for what it does not read any more."""
        stand, read = None, None
        if site is not None and "embedding" not in site.kinds:
            read = left.get(site.axes[1])
            stand = None if read is None else self.stands.of_layer(name, ~read)
        cut = Cut(left, () if site is None else site.axes, stand)
        tensor, bias = cut.of(value)
        made = Slice(
            self._hold("left", tensor, param),
            None if bias is None else self._hold("bias", bias, param),
            param,
            name,
            cut,
        )
        self.slicing.coupling.tracks[made.constant] = self.slicing.coupling.tracks[param]
        param.replace_all_uses_with(made.constant)
        return made

    def _hold(self, role: str, tensor: Tensor, like: Node) -> Node:
        node, self.tensors[node] = constant(self.gm, role, tensor, like)
        return node

    def _add(self, use: Use, bias: Node) -> None:
        """To the output of a layer, as its own bias, where it has none."""
        node, writer = use.node, Writer(self.gm, use.node)
        bias = writer.cast(bias, node.meta["val"].dtype)
        if node.target is _aten.mm.default:
            node.replace_all_uses_with(writer.op(_aten.addmm.default, bias, *node.args))
            self.gm.graph.erase_node(node)
            return
        place = 0 if node.target is _aten.addmm.default else 2
        own = node.args[place]
        node.update_arg(place, bias if own is None else writer.op(_aten.add.Tensor, own, bias))
