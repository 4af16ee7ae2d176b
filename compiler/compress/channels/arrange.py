"""Putting a graph's channels in an order in which blocks of weights keep more of what matters, exactly: with all that is coupled with them.

Which channels move together is what `coupling.py` says. Two may change places only if all operations treat them alike, so if the same
operations, at the same operands, have as many of either: halves of a split, one of which a ReLU follows, do not mix. What is computed is
the same but for the order of sums.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from effc.compiler.compress.channels.arranged import Arranged, Order, Ordered
from effc.compiler.compress.channels.coupling import Coupling, flat
from effc.compiler.compress.channels.groups import Axis, Group, find_groups
from effc.compiler.compress.channels.orders import grouped
from effc.compiler.compress.channels.tracks import Track
from effc.compiler.compress.pruning.fitting import unpruned
from effc.compiler.compress.pruning.masks import kept, laid_out
from effc.compiler.compress.sites import WeightSite, find_sites
from effc.compiler.compress.writer import constant
from effc.passes.sparsity import Sparsify

#: What an order has to keep more, as a share of what the masks keep.
_LEAST_GAIN = 1e-3


def arrange(gm: GraphModule, names: Mapping[Node, str], values: Mapping[Node, Tensor], options: Sparsify) -> Arranged:
    """Rewrite ``gm`` in place. ``names`` and ``values``: of its inputs that are parameters."""
    sites = find_sites(names)[0]
    coupling = Coupling(gm, names, {use.node for site in sites for use in site.uses if use.kind != "embedding"})
    groups, _ = find_groups(coupling, sites, lambda name: False)  # what is not to be pruned is the same in any order
    scores = _Scores(sites, values, options)
    moves: dict[int, int] = {}
    notes = [tied for group in groups if scores.axes(group) and (tied := _tied(group))]
    for group in _alike(coupling, groups):
        found = scores.order(group)
        if found is not None:
            order, gain = found
            moves |= {group.roots[to]: group.roots[int(of)] for to, of in enumerate(order)}
            notes.append(
                f"{group.name}: {len(order)} channels are rearranged, blocks keep {gain:.1%} more of what matters"
            )
    return _written(gm, names, values, sites, _Moves(coupling, moves), notes)


class _Scores:
    """How much each element of the weights matters that will be pruned."""

    def __init__(self, sites: Sequence[WeightSite], values: Mapping[Node, Tensor], options: Sparsify) -> None:
        self.options, self.known = options, dict[str, Tensor]()
        for site in sites:
            value = values[site.param]
            if unpruned(options, site) or options.chosen.misfit(site.name, site.by_channels(value).shape):
                continue
            laid = laid_out(site.by_channels(value)).abs()
            statistics = None if options.method == "magnitude" else options.statistics(site.name)
            if statistics is not None and len(statistics.mean_square) == laid.shape[2]:
                laid = laid * torch.from_numpy(statistics.mean_square).sqrt()
            self.known[site.name] = laid / (laid.sum() or 1.0)

    def order(self, group: Group) -> tuple[Tensor, float] | None:
        """Which unit stands at each place, and by how much more blocks keep; None where that is nothing."""
        axes = self.axes(group)
        if not axes:
            return None
        size = max(self._size(axis) for axis in axes)
        features = torch.cat([self._features(axis) for axis in axes], 1)
        order = grouped(features, size, self.options.share)
        before, after = (sum(self._kept(axis, o) for axis in axes) for o in (torch.arange(len(order)), order))
        gain = after / max(before, 1e-30) - 1
        return (order, gain) if gain > _LEAST_GAIN else None

    def axes(self, group: Group) -> list[Axis]:
        """Those along which blocks hold several of its channels."""
        return [axis for axis in group.axes if axis.site.name in self.known and self._size(axis) > 1]

    def _size(self, axis: Axis) -> int:
        """Of a block."""
        return self.options.chosen.columns if axis.reads else self.options.chosen.rows

    def _features(self, axis: Axis) -> Tensor:
        """``[units, items]``: items are what a unit shares with its neighbours in a block."""
        scores = self.known[axis.site.name]
        if self.options.chosen.kind == "kernel":
            scores = scores.sum(1, keepdim=True)
        places = _places(axis)
        return scores[:, :, places].permute(2, 0, 1).flatten(1) if axis.reads else scores[places].flatten(1)

    def _kept(self, axis: Axis, order: Tensor) -> float:
        """Of a weight whose units stand in ``order``."""
        scores, places = self.known[axis.site.name], _places(axis)
        dim = 2 if axis.reads else 0
        index = torch.arange(scores.shape[dim])
        index[places] = places[order]
        moved = scores.index_select(dim, index)
        return float((moved * kept(moved, self.options.chosen, self.options.share)).sum())


def _places(axis: Axis) -> Tensor:
    """Of each unit, the channel."""
    found = torch.empty(int(axis.units.max()) + 1, dtype=torch.int64)
    channels = (axis.units >= 0).nonzero().ravel()
    found[axis.units[channels]] = channels
    return found


def _alike(coupling: Coupling, groups: Sequence[Group]) -> Iterator[Group]:
    """Parts of ``groups`` whose units may change places, each one channel of every weight."""
    passed: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    for number, track in enumerate(t for result in coupling.tracks.values() for t in flat(result)):
        if coupling.dims[track] is not None:
            roots = torch.tensor(coupling.roots(track))
            for root, count in zip(*(t.tolist() for t in roots.unique(return_counts=True)), strict=True):
                passed[root].append((number, count))
    for group in groups:
        parts: defaultdict[tuple[tuple[int, int], ...], list[int]] = defaultdict(list)
        for unit, root in enumerate(group.roots):
            parts[tuple(passed[root])].append(unit)
        for units in parts.values():
            axes = [_part(axis, units) for axis in group.axes]
            if len(units) > 1 and all(int((axis.units >= 0).sum()) == len(units) for axis in axes):
                yield Group(group.name, [group.roots[unit] for unit in units], axes)


def _tied(group: Group) -> str:
    """Why its channels stay as they are, for the report; ``""`` where each may move alone."""
    units = len(group.roots)
    widths = {axis.site.name: int((axis.units >= 0).sum()) // units for axis in group.axes}
    name = max(widths, key=widths.__getitem__)
    if widths[name] <= 1:
        return ""
    return (
        f"{group.name} keeps the order of its channels: {widths[name]} of {name} would move together, "
        "as a head, a group of a convolution or a window laid flat"
    )


def _part(axis: Axis, units: Sequence[int]) -> Axis:
    """With ``units`` alone, numbered anew."""
    number = torch.full((int(axis.units.max()) + 2,), -1)
    number[units] = torch.arange(len(units))
    return Axis(axis.site, axis.dim, torch.where(axis.units >= 0, number[axis.units], -1))


class _Moves:
    """``moves``: the class that comes to the place of each, of those that move."""

    def __init__(self, coupling: Coupling, moves: Mapping[int, int]) -> None:
        self.coupling, self.moves = coupling, moves

    def order(self, node: Node) -> Order:
        """Of the one tensor of ``node``, of dimensions whose channels move."""
        found = {dim: self._of(track) for dim, track in self.coupling.cut(node)}
        return {dim: order for dim, order in found.items() if not torch.equal(order, torch.arange(len(order)))}

    def _of(self, track: Track) -> Tensor:
        roots = self.coupling.roots(track)
        places: defaultdict[int, list[int]] = defaultdict(list)
        for place, root in enumerate(roots):
            places[root].append(place)
        found = torch.arange(len(roots))
        for to, of in self.moves.items():
            if to in places:
                found[places[to]] = torch.tensor(places[of])
        return found


def _written(
    gm: GraphModule,
    names: Mapping[Node, str],
    values: Mapping[Node, Tensor],
    sites: Sequence[WeightSite],
    moves: _Moves,
    notes: Sequence[str],
) -> Arranged:
    """Put constants in the place of the parameters whose channels move."""
    met, out = {}, {}
    for site in sites:
        ours, theirs = moves.order(site.param), moves.order(site.uses[0].activation)
        if site.uses[0].channels in theirs:
            met[site.name] = theirs[site.uses[0].channels].numpy()
        if site.out in ours:
            out[site.name] = ours[site.out].numpy()
    ordered, tensors = [], {}
    for param, name in names.items():
        order = moves.order(param)
        if order:
            made = Ordered(param, param, name, order).of(values[param])
            node, tensors[node] = constant(gm, "ordered", made, param)
            ordered.append(Ordered(node, param, name, order))
            param.replace_all_uses_with(node)
    return Arranged(ordered, tensors, met, out, notes)
