"""Removing channels from a graph: choosing them, slicing what is coupled with them, and adding what makes up for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from effc.compiler.compress.channels.choose import choose, share_of
from effc.compiler.compress.channels.coupling import Coupling, flat
from effc.compiler.compress.channels.groups import Group, find_groups
from effc.compiler.compress.channels.removed import Cut, Removed, Slice, Stand
from effc.compiler.compress.channels.repair import constant_for, regression_for
from effc.compiler.compress.channels.saliency import saliency, shown
from effc.compiler.compress.channels.slicing import Left, Slicing
from effc.compiler.compress.inputs import Inputs, sensitivity_of
from effc.compiler.compress.pruning.prune import check_weight, inputs_of
from effc.compiler.compress.sites import Use, WeightSite, find_sites
from effc.compiler.compress.writer import Writer, constant
from effc.passes.sparsity import Sparsify

_aten = torch.ops.aten


def remove_channels(
    gm: GraphModule, names: Mapping[Node, str], values: Mapping[Node, Tensor], options: Sparsify
) -> Removed:
    """Rewrite ``gm`` in place. ``names`` and ``values``: of its inputs that are parameters.

    InputError: a weight to prune that holds NaN, infinity or zeros alone; a calibration of another model.
    """
    sites = find_sites(names)[0]
    coupling = Coupling(gm, names, {use.node for site in sites for use in site.uses if use.kind != "embedding"})
    groups, kept = find_groups(coupling, sites, options.skips)
    inputs = _inputs(groups, values, options)
    seen = [
        g for g in groups if options.method == "magnitude" or any(a.reads and a.site.name in inputs for a in g.axes)
    ]
    kept |= {g.name: "the calibration has not seen it" for g in groups if g not in seen}
    weights = {a.site.name: values[a.site.param] for g in seen for a in g.axes}
    for name, weight in weights.items():
        check_weight(name, weight)
    sensitivities = _sensitivities(seen, inputs, options)
    scores = [
        saliency(g, weights, inputs, options.method)
        if sensitivities is None
        else shown(g, weights, inputs, options.method, sensitivities)
        for g in seen
    ]
    layers = [site for site in sites if "embedding" not in site.kinds]
    chosen = choose(seen, scores, layers, options.share)
    gone = {
        root for g, units in zip(seen, chosen, strict=True) for root, goes in zip(g.roots, units, strict=True) if goes
    }
    slicing = Slicing(coupling, _without_the_last(coupling, gone))
    reached = share_of(seen, [g.units_in(slicing.gone) for g in seen], layers)
    notes = [
        f"sparsity: {reached:.1%} of the elements of {len(layers)} weights go with their channels, "
        f"{options.share:.1%} are asked, by {options.method}" + " and gradients" * (sensitivities is not None)
    ]
    notes += [g.described(slicing.gone) for g in seen]
    notes += [f"{name} keeps its output channels: {reason}" for name, reason in kept.items()]
    return _Rewriting(gm, slicing, _Stands(inputs, options)).run(names, values, sites, notes)


def _inputs(groups: Sequence[Group], values: Mapping[Node, Tensor], options: Sparsify) -> dict[str, Inputs]:
    """What meets the weights that read these channels, where the method looks at it and the calibration has seen it."""
    found: dict[str, Inputs] = {}
    if options.method != "magnitude":
        for site in {a.site.name: a.site for g in groups for a in g.axes if a.reads}.values():
            statistics = options.statistics(site.name)
            if statistics is not None:
                weight = site.by_channels(values[site.param])
                found[site.name] = inputs_of({site.name: weight}, options.method, statistics)
    return found


def _sensitivities(
    groups: Sequence[Group], inputs: Mapping[str, Inputs], options: Sparsify
) -> dict[str, Tensor] | None:
    """Of the layers that ``inputs`` meet; None where one of them has none, for what counts otherwise cannot be compared."""
    found: dict[str, Tensor] = {}
    for name in dict.fromkeys(a.site.name for g in groups for a in g.axes if a.reads and a.site.name in inputs):
        sensitivity = sensitivity_of(options.statistics(name), name)
        if sensitivity is None:
            return None
        found[name] = sensitivity
    return found or None


def _without_the_last(coupling: Coupling, gone: set[int]) -> set[int]:
    """``gone`` but for one channel of each tensor that would lose all: parts of a weight may be read apart."""
    found = set(gone)
    for result in coupling.tracks.values():
        for track in flat(result):
            if coupling.dims[track] is not None and found.issuperset(roots := coupling.roots(track)):
                found.discard(roots[0])
    return found


class _Stands:
    """What makes up for channels that go in the layers that read them, each found once for layers with one activation."""

    def __init__(self, inputs: Mapping[str, Inputs], options: Sparsify) -> None:
        self.inputs, self.options = inputs, options
        self.known: dict[tuple[int, bytes], Stand] = {}

    def of(self, layer: str, gone: Tensor) -> Stand | None:
        """None where nothing is known of what meets ``layer``."""
        inputs, statistics = self.inputs.get(layer), self.options.statistics(layer)
        if inputs is None or statistics is None:
            return None
        key = (id(statistics.sample), gone.numpy().tobytes())
        if key not in self.known:
            self.known[key] = (regression_for if self.options.method == "sparsegpt" else constant_for)(inputs, gone)
        return self.known[key]


class _Rewriting:
    def __init__(self, gm: GraphModule, slicing: Slicing, stands: _Stands) -> None:
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
            channels = next((left for dim, left in theirs.items() if dim == _channels_of(site.uses[0])), None)
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
            read = next((mask for dim, mask in left.items() if dim != site.out), None)
            stand = None if read is None else self.stands.of(name, ~read)
        cut = Cut(left, site.out if site is not None else 0, stand)
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
        node = constant(self.gm, role, tensor, like)
        self.tensors[node] = tensor
        return node

    def _add(self, use: Use, bias: Node) -> None:
        """To the output of a layer, as its own bias, where it has none."""
        node, writer = use.node, Writer(self.gm, use.node)
        if node.target is _aten.mm.default:
            node.replace_all_uses_with(writer.op(_aten.addmm.default, bias, *node.args))
            self.gm.graph.erase_node(node)
            return
        place = 0 if node.target is _aten.addmm.default else 2
        own = node.args[place]
        node.update_arg(place, bias if own is None else writer.op(_aten.add.Tensor, own, bias))


def _channels_of(use: Use) -> int:
    """The dimension of channels of what meets a weight."""
    return 1 if use.kind == "convolution" else use.activation.meta["val"].dim() - 1
