"""Removing channels from a graph: choosing them, slicing what is coupled with them, and adding what makes up for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor
from torch.fx import GraphModule, Node

from effc.compiler.compress.channels.choose import choose, share_of
from effc.compiler.compress.channels.coupling import Coupling
from effc.compiler.compress.channels.groups import Group, find_groups
from effc.compiler.compress.channels.removed import Removed, Stand
from effc.compiler.compress.channels.repair import constant_for, regression_for
from effc.compiler.compress.channels.rewriting import Rewriting
from effc.compiler.compress.channels.saliency import by_output, by_sample, saliency
from effc.compiler.compress.channels.slicing import Slicing, without_the_last
from effc.compiler.compress.inputs import Inputs, effects_of, sensitivity_of
from effc.compiler.compress.pruning.prune import check_weight, inputs_of
from effc.compiler.compress.sites import find_sites
from effc.compiler.ir.calibration import Statistics
from effc.passes.sparsity import Sparsify


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
    scores, by_gradients = _scores(seen, weights, inputs, options)
    layers = [site for site in sites if "embedding" not in site.kinds]
    chosen = choose(seen, scores, layers, options.share)
    gone = {
        root for g, units in zip(seen, chosen, strict=True) for root, goes in zip(g.roots, units, strict=True) if goes
    }
    slicing = Slicing(coupling, without_the_last(coupling, gone))
    reached = share_of(seen, [g.units_in(slicing.gone) for g in seen], layers)
    notes = [
        f"sparsity: {reached:.1%} of the elements of {len(layers)} weights go with their channels, "
        f"{options.share:.1%} are asked, by {options.method}" + " and gradients" * by_gradients
    ]
    notes += [g.described(slicing.gone) for g in seen]
    notes += [f"{name} keeps its output channels: {reason}" for name, reason in kept.items()]
    return Rewriting(gm, slicing, _Stands(inputs, options)).run(names, values, sites, notes)


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


def _scores(
    groups: Sequence[Group], weights: Mapping[str, Tensor], inputs: Mapping[str, Inputs], options: Sparsify
) -> tuple[list[Tensor], bool]:
    """Of each group's units, and whether gradients tell them: by sample where samples are told apart."""
    for measure, read in ((by_sample, effects_of), (by_output, sensitivity_of)):
        known = _gradients(groups, inputs, options, read)
        if known is not None:
            return [measure(g, weights, inputs, options.method, known) for g in groups], True
    return [saliency(g, weights, inputs, options.method) for g in groups], False


def _gradients(
    groups: Sequence[Group],
    inputs: Mapping[str, Inputs],
    options: Sparsify,
    read: Callable[[Statistics | None, str], Tensor | None],
) -> dict[str, Tensor] | None:
    """What ``read`` finds of the layers that ``inputs`` meet; None where it finds nothing of one, for others cannot be compared with it."""
    found: dict[str, Tensor] = {}
    for name in dict.fromkeys(a.site.name for g in groups for a in g.axes if a.reads and a.site.name in inputs):
        known = read(options.statistics(name), name)
        if known is None:
            return None
        found[name] = known
    return found or None


class _Stands:
    """What makes up for channels that go in the layers that read them, each found once for layers with one activation."""

    def __init__(self, inputs: Mapping[str, Inputs], options: Sparsify) -> None:
        self.inputs, self.options = inputs, options
        self.known: dict[tuple[int, bytes], Stand] = {}

    def of_layer(self, layer: str, gone: Tensor) -> Stand | None:
        """None where nothing is known of what meets ``layer``."""
        inputs, statistics = self.inputs.get(layer), self.options.statistics(layer)
        if inputs is None or statistics is None:
            return None
        key = (id(statistics.sample), gone.numpy().tobytes())
        if key not in self.known:
            self.known[key] = (regression_for if self.options.method == "sparsegpt" else constant_for)(inputs, gone)
        return self.known[key]
