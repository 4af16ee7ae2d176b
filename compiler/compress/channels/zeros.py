"""Channels that a model's zeros make needless, whoever made them, go with all that is coupled with them: exactly.

A class of channels is needless where each layer that sums over it reads one number there (`constants.py`), which goes into the layer's bias
if it is not 0, or has weights there that are all 0, whatever they meet. Values are taken as finite, as kernels of sparse weights take them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from effc.compiler.compress.channels.choose import multiple_of, share_of
from effc.compiler.compress.channels.constants import Constants, Numbers
from effc.compiler.compress.channels.coupling import Coupling
from effc.compiler.compress.channels.groups import Group, find_groups
from effc.compiler.compress.channels.removed import Removed, Required, Stand, along
from effc.compiler.compress.channels.rewriting import Rewriting
from effc.compiler.compress.channels.slicing import Slicing, without_the_last
from effc.compiler.compress.pruning.detect import best_fit
from effc.compiler.compress.sites import Use, WeightSite, find_sites, left_out
from effc.passes.sparsity import Sparsify

#: Of shares of zeros, in floats.
_ROUNDING = 1e-9


def remove_needless(
    gm: GraphModule, names: Mapping[Node, str], values: Mapping[Node, Tensor], options: Sparsify
) -> Removed:
    """Rewrite ``gm`` in place. ``names`` and ``values``: of its inputs that are parameters."""
    sites = find_sites(names)[0]
    if not any(_has_zeros(s, values[s.param]) for s in sites) and not any(_masks(values[n]) for n in names):
        return Removed.nothing()
    coupling = Coupling(gm, names, {use.node for site in sites for use in site.uses if use.kind != "embedding"})
    groups, _ = find_groups(coupling, sites, options.skips)
    needless = _Needless(coupling, groups, sites, values)
    found = [(group, needless.of(group)) for group in groups]
    chosen = {root for group, roots in found if _keep_patterns(group, roots, values, options) for root in roots}
    gone = without_the_last(coupling, chosen)
    if not gone:
        return Removed.nothing()
    slicing = Slicing(coupling, gone)
    layers = [site for site in sites if "embedding" not in site.kinds]
    reached = share_of(groups, [g.units_in(gone) for g in groups], layers)
    notes = [
        f"sparsity: {reached:.1%} of the elements of {len(layers)} weights go with channels that zeros make needless"
    ]
    notes += [g.described(gone) for g in groups if not gone.isdisjoint(g.roots)]
    required = needless.required(names, gone)
    return replace(Rewriting(gm, slicing, needless).run(names, values, sites, notes), required=required)


def _has_zeros(site: WeightSite, value: Tensor) -> bool:
    """Whether all of a weight is 0 along some channel."""
    dims = [site.axes[1]] if "embedding" in site.kinds else [site.out, site.axes[1]]
    return value.numel() > 0 and any(not bool(along(value, d).any(1).all()) for d in dims)


def _masks(vector: Tensor) -> bool:
    """Whether some but not all are 0 of what may scale channels: a norm's weight, a mask."""
    if vector.numel() != max(vector.shape, default=0) or not (vector.is_floating_point() or vector.dtype == torch.bool):
        return False
    return bool((vector == 0).any()) and bool(vector.any())


def _keep_patterns(group: Group, gone: Collection[int], values: Mapping[Node, Tensor], options: Sparsify) -> bool:
    """Whether no weight of ``group`` needs more bits without the classes ``gone``, as where blocks of zeros would lie elsewhere."""
    stays = ~group.units_in(gone)
    for site in {axis.site.name: axis.site for axis in group.axes}.values():
        whole = part = site.by_channels(values[site.param])
        for axis in group.axes:
            if axis.site is site:
                kept = torch.where(axis.units >= 0, stays[axis.units.clamp(min=0)], True)
                part = part.index_select(site.axes.index(axis.dim), kept.nonzero().ravel())
        dense = "embedding" in site.kinds or bool(left_out(site, options))
        if _bits(part, dense) > _bits(whole, dense) * (1 + _ROUNDING):
            return False
    return True


def _bits(weight: Tensor, dense: bool) -> float:
    """Of ``weight``, ``[out, channels, window…]``, by the pattern of its zeros that suits it."""
    fit = None if dense or weight.numel() == 0 else best_fit(weight)
    return weight.numel() * (32.0 if fit is None else fit.bits)


class _Needless:
    """Which channels are, what layers read there (`Stands`), and what that relies on."""

    def __init__(
        self, coupling: Coupling, groups: Sequence[Group], sites: Sequence[WeightSite], values: Mapping[Node, Tensor]
    ) -> None:
        self.coupling, self.values = coupling, values
        self.known = Constants(coupling, values, [root for group in groups for root in group.roots])
        self.reading = {
            site.name: site
            for site in sites
            if "embedding" not in site.kinds and site.axes[1] in dict(coupling.cut(site.param))
        }
        self.met = {name: self._met(site) for name, site in self.reading.items()}

    def of(self, group: Group) -> list[int]:
        """The classes that go: as many as leave a multiple of what kernels like."""
        axes = [a for a in group.axes if a.reads]
        found = [
            root
            for root in group.roots
            if all(root in self.met[a.site.name] or root in self.known.zeros(a.site.param, a.dim) for a in axes)
        ]
        multiple = multiple_of(group)
        left = -(-(len(group.roots) - len(found)) // multiple) * multiple
        return found[: max(len(group.roots) - left, 0)]

    def of_layer(self, layer: str, gone: Tensor) -> Stand | None:
        """See `Stands`: the numbers that ``layer`` reads."""
        site, met = self.reading[layer], self.met[layer]
        roots = self._roots(site.param, site.axes[1])
        numbers = [met.get(roots[place], 0.0) for place in gone.nonzero().ravel().tolist()]
        return (None, torch.tensor(numbers, dtype=torch.float64)) if any(numbers) else None

    def required(self, names: Mapping[Node, str], gone: Collection[int]) -> list[Required]:
        """What new values of parameters have to hold too: the numbers that these channels are made of, and weights that make none of them
        infinite or NaN.
        """
        found = []
        for param, name in names.items():
            for dim, _ in self.coupling.cut(param):
                roots, numbers = self._roots(param, dim), self.known.at(param, dim)
                places = [place for place, root in enumerate(roots) if root in gone]
                met: Collection[int] = ()
                if name in self.reading and self.reading[name].axes[1] == dim:
                    met = self.met[name]
                    found.append(Required(param, name, dim, [p for p in places if roots[p] in met], None))
                same = [p for p in places if roots[p] in numbers and roots[p] not in met]
                found.append(Required(param, name, dim, same, [numbers[roots[p]] for p in same]))
        return [r for r in found if r.places]

    def _met(self, site: WeightSite) -> Numbers:
        """What the layer is known to read where its weights are finite, in all of its uses."""
        dim = site.axes[1]
        finite = along(self.values[site.param], dim).isfinite().all(1).tolist()
        infinite = {root for root, ok in zip(self._roots(site.param, dim), finite, strict=True) if not ok}
        first, *others = (self._met_by(use) for use in site.uses)
        return {
            root: number
            for root, number in first.items()
            if root not in infinite and all(other.get(root) == number for other in others)
        }

    def _met_by(self, use: Use) -> Numbers:
        found = self.known.at(use.activation, use.channels)
        given: Sequence[Any] = use.node.args
        padded = use.kind == "convolution" and any(p != 0 for p in given[4])
        return {root: number for root, number in found.items() if number == 0 or not padded}

    def _roots(self, param: Node, dim: int) -> list[int]:
        return next(self.coupling.roots(track) for d, track in self.coupling.cut(param) if d == dim)
