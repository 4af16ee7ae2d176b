"""Groups of channels that may go: what one loses, all of its weights lose."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch

from effc.compiler.compress.channels.coupling import Coupling
from effc.compiler.compress.sites import WeightSite


@dataclass(frozen=True, eq=False)
class Axis:
    """A dimension of a weight; ``units[i]``: the unit of its group that channel ``i`` belongs to."""

    site: WeightSite
    dim: int
    units: torch.Tensor

    @property
    def reads(self) -> bool:
        """Whether these are the channels that meet the weight, not those that it makes."""
        return _reads(self.site, self.dim)


@dataclass(frozen=True, eq=False)
class Group:
    """``roots``: a class of channels for each unit, which goes as a whole: a channel, a hidden unit, an attention head. ``name``: of the
    first weight that makes them.
    """

    name: str
    roots: Sequence[int]
    axes: Sequence[Axis]

    @property
    def width(self) -> int:
        """Channels of a unit, in the weight that the group is named after."""
        axis = next((a for a in self.axes if not a.reads), self.axes[0])
        return max(1, int((axis.units >= 0).sum()) // len(self.roots))

    def add(self, sums: torch.Tensor, axis: Axis, values: torch.Tensor) -> None:
        """To ``sums``, ``[units]`` or ``[units, …]``, what ``values``, ``[channels, …]``, says of channels along ``axis``."""
        mine = axis.units >= 0
        sums.index_add_(0, axis.units[mine], values[mine].to(sums.dtype))

    def units_in(self, roots: Collection[int]) -> torch.Tensor:
        """Which units are among ``roots``: bool."""
        return torch.tensor([root in roots for root in self.roots])

    def described(self, gone: Collection[int]) -> str:
        """How many of its units go, for the report."""
        units = "channels" if self.width == 1 else f"heads or groups of {self.width} channels"
        lost, others = int(self.units_in(gone).sum()), len({a.site.name for a in self.axes}) - 1
        return f"{self.name} loses {lost} of {len(self.roots)} {units}, with {others} weights that make or read the same ones"


def _reads(site: WeightSite, dim: int) -> bool:
    return dim == site.axes[1] and "embedding" not in site.kinds


def find_groups(
    coupling: Coupling, sites: Sequence[WeightSite], skips: Callable[[str], bool]
) -> tuple[list[Group], dict[str, str]]:
    """The groups of two units and more among the weights ``sites`` that are both made and read, and why output channels of others stay."""
    classes = coupling.classes
    for site in sites:
        if skips(site.name):
            coupling.fix(coupling.of(site.param), f"option 'skip' names {site.name}")
        if len(site.kinds) > 1:
            coupling.fix(coupling.of(site.param), f"{site.name} is a table and a layer at once")
    members: dict[int, list[tuple[int, int]]] = {}
    channels: dict[tuple[int, int], Sequence[int]] = {}
    kept: dict[str, str] = {}
    for number, site in enumerate(sites):
        for dim, track in coupling.cut(site.param):
            roots = coupling.roots(track)
            channels[number, dim] = roots
            reasons = Counter(reason for root in roots if (reason := classes.reason(root)))
            if reasons and dim == site.out:
                kept[site.name] = reasons.most_common(1)[0][0]
            for root in dict.fromkeys(roots):
                if not classes.reason(root):
                    members.setdefault(root, []).append((number, dim))
    found: dict[tuple[tuple[int, int], ...], list[int]] = {}
    for root, places in members.items():
        reads = {_reads(sites[number], dim) for number, dim in places}
        if reads == {True, False}:
            found.setdefault(tuple(places), []).append(root)
    groups = []
    for axes, roots in found.items():
        if len(roots) > 1:
            units = {root: unit for unit, root in enumerate(roots)}
            every = [_axis(sites[n], dim, channels[n, dim], units) for n, dim in axes]
            groups.append(Group(next(a.site.name for a in every if not a.reads), roots, every))
    return groups, kept


def _axis(site: WeightSite, dim: int, channels: Sequence[int], units: Mapping[int, int]) -> Axis:
    """Channels of other groups belong to no unit: -1."""
    return Axis(site, dim, torch.tensor([units.get(root, -1) for root in channels]))
