"""Which units go: those that matter least, of all groups, until a share of the weights' elements is gone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from effc.compiler.compress.channels.groups import Group
from effc.compiler.compress.sites import WeightSite

#: Of each group at least this share stays.
_LEAST = 1 / 16


def choose(
    groups: Sequence[Group], scores: Sequence[Tensor], sites: Sequence[WeightSite], share: float
) -> list[Tensor]:
    """Which units of each group go (bool), so that the share of the elements of ``sites`` that goes with them is as near to ``share`` as
    can be: of each group a multiple of a vector's channels stays (`multiple_of`). ``scores``: of each group's units.
    """
    if not groups:
        return []
    orders = [s.argsort(stable=True) for s in scores]
    every, found = torch.cat(list(scores)).sort().values, (0.0, [torch.zeros(len(s), dtype=torch.bool) for s in scores])
    low, high = 0, len(every)
    while low <= high:
        middle = (low + high) // 2
        limit = every[middle - 1] if middle else -torch.inf
        counts = [_count(g, int((s <= limit).sum())) for g, s in zip(groups, scores, strict=True)]
        gone = [
            torch.zeros(len(o), dtype=torch.bool).index_fill_(0, o[:n], True)
            for o, n in zip(orders, counts, strict=True)
        ]
        reached = share_of(groups, gone, sites)
        if abs(reached - share) < abs(found[0] - share):
            found = reached, gone
        low, high = (middle + 1, high) if reached < share else (low, middle - 1)
    return found[1]


def share_of(groups: Sequence[Group], gone: Sequence[Tensor], sites: Sequence[WeightSite]) -> float:
    """The share of elements that go where ``gone`` do."""
    left: dict[str, dict[int, int]] = {}
    for group, units in zip(groups, gone, strict=True):
        for axis in group.axes:
            sizes = left.setdefault(axis.site.name, {})
            lost = int(units[axis.units.clamp(min=0)].logical_and(axis.units >= 0).sum())
            sizes[axis.dim] = sizes.get(axis.dim, len(axis.units)) - lost
    before = after = 0.0
    for site in sites:
        shape = site.param.meta["val"].shape
        whole = float(shape.numel())
        before += whole
        for dim, size in left.get(site.name, {}).items():
            whole *= size / shape[dim]
        after += whole
    return 1 - after / max(before, 1.0)


def _count(group: Group, asked: int) -> int:
    """How many units go where ``asked`` are to."""
    units = len(group.roots)
    multiple = multiple_of(group)
    kept = max(round((units - asked) / multiple) * multiple, multiple, -(-units // round(1 / _LEAST)))
    return max(units - kept, 0)


def multiple_of(group: Group) -> int:
    """Of how many units a group keeps a multiple: those of a vector's 16 floats, or of half of that where there are few."""
    channels = len(group.roots) * group.width
    return max(1, (16 if channels >= 64 else 8 if channels >= 16 else 1) // group.width)
