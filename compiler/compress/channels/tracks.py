"""``Track``: the channels along some dimensions of a tensor. A tensor has one for each way in which it may be made smaller."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.fx.experimental.symbolic_shapes import statically_known_true

from effc.compiler.compress.channels.classes import Classes, Labels


@dataclass(eq=False)
class Track:
    """``labels``: of the tensor's rank, of size 1 where they do not vary; ``[1, C, 1, 1]`` of a convolution's result. Labels that vary
    along several dimensions, ``[1, 1, heads, channels]`` behind a reshape, leave open along which of them the tensor is cut
    (`settled`): not along one in ``kept``.
    """

    labels: Labels
    kept: set[int] = field(default_factory=set)

    @property
    def dims(self) -> tuple[int, ...]:
        """Along which labels vary."""
        return tuple(d for d, size in enumerate(self.labels.shape) if size > 1)

    def varies(self, dim: int) -> bool:
        return bool(self.labels.shape[dim] > 1)


#: Of one tensor.
Tracks = list[Track]


def whole(classes: Classes, track: Track, dims: Iterable[int], reason: str) -> Track | None:
    """``track`` where the tensor stays whole along ``dims``; None, its channels fixed for ``reason``, where nothing else varies."""
    labels = track.labels
    for dim in dims:
        if labels.shape[dim] > 1:
            labels = classes.join_along(labels, dim)
    if labels.size == 1:
        classes.fix(track.labels, reason)
        return None
    return Track(labels) if labels.shape != track.labels.shape else track


def all_whole(classes: Classes, tracks: Tracks, dims: Iterable[int], reason: str) -> Tracks:
    """`whole` of each that is left."""
    every = list(dims)
    return [kept for t in tracks if (kept := whole(classes, t, every, reason)) is not None]


def settled(classes: Classes, track: Track, reason: str) -> int | None:
    """The dimension along which the tensor is cut, that with most classes, the outermost of these; None: it stays whole."""
    dims = [d for d in track.dims if d not in track.kept]
    roots = classes.roots(track.labels)
    if not dims:
        classes.fix(track.labels, reason)
        return None

    def count(dim: int) -> int:
        """Classes that are left where it is ``dim``: those along it that no other place joins."""
        rows = np.moveaxis(roots, dim, 0).reshape(roots.shape[dim], -1)
        return len({tuple(np.unique(row).tolist()) for row in rows})

    chosen = max(dims, key=count) if len(dims) > 1 else dims[0]
    for dim in track.dims:
        if dim != chosen:
            classes.join_along(track.labels, dim)
    return chosen


def merged(classes: Classes, operands: Sequence[tuple[Tracks, Sequence[bool]]], reason: str) -> Tracks:
    """Of the result of an operation on corresponding elements. ``operands``: the tracks of each, of the result's rank, and along which
    dimensions it is not broadcast. Channels that meet stay or go together; those that meet what stays whole have to stay.
    """
    left = [(list(tracks), wide) for tracks, wide in operands]
    while True:
        found = [t for tracks, _ in left for t in tracks]
        bare = {
            d
            for tracks, wide in left
            for d, here in enumerate(wide)
            if here and not any(t.varies(d) for t in tracks) and any(t.varies(d) for t in found)
        }
        if not bare:  # tracks that share a dimension and differ in another
            sets = [set(t.dims) for t in found]
            bare = {d for a in sets for b in sets if a & b for d in a ^ b}
        if not bare:
            break
        left = [(all_whole(classes, tracks, bare, reason), wide) for tracks, wide in left]
    by_dims: dict[tuple[int, ...], Track] = {}
    for t in found:
        known = by_dims.setdefault(t.dims, Track(t.labels))
        classes.join(known.labels, t.labels)
    return list(by_dims.values())


def reshaped(classes: Classes, track: Track, old: Sequence[int], new: Sequence[int], reason: str) -> Track | None:
    """``track`` of a tensor of sizes ``old`` behind a reshape to ``new``."""
    labels: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    for ours, theirs in factors(old, new):
        if not any(track.varies(d) for d in ours):
            labels.append(((1,) * len(ours), (1,) * len(theirs)))
        elif len(ours) == len(theirs) == 1:
            labels.append(((track.labels.shape[ours[0]],),) * 2)
        elif all(isinstance(s, int) for s in (*(old[d] for d in ours), *(new[d] for d in theirs))):
            labels.append((tuple(old[d] for d in ours), tuple(new[d] for d in theirs)))
        else:  # sizes that are not known are mixed with channels
            kept = whole(classes, track, ours, reason)
            return None if kept is None else reshaped(classes, kept, old, new, reason)
    before = [size for ours, _ in labels for size in ours]
    after = [size for _, theirs in labels for size in theirs]
    return Track(np.broadcast_to(track.labels, before).reshape(after))


def factors(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Dimensions of ``old`` and of ``new`` that hold the same elements, as few together as can be told."""
    found: list[tuple[list[int], list[int]]] = []
    i, j = len(old), len(new)
    while i and j:
        ours, theirs = [i := i - 1], [j := j - 1]
        a, b = old[i], new[j]
        while not statically_known_true(_equal(a, b)):
            if not all(isinstance(s, int) for s in (a, b)) or not (i or j):
                break
            if a < b and i:
                ours.insert(0, i := i - 1)
                a *= old[i]
            elif j:
                theirs.insert(0, j := j - 1)
                b *= new[j]
            else:
                break
        else:
            found.insert(0, (ours, theirs))
            continue
        i, j = 0, 0
        found.insert(0, ([*range(ours[-1] + 1)], [*range(theirs[-1] + 1)]))
    if i or j:  # dimensions of size 1 in front
        found.insert(0, ([*range(i)], [*range(j)]))
    return found


def _equal(a: int, b: int) -> bool | torch.SymBool:
    return a == b
