"""The arena: one block of memory for all buffers of a region, at offsets that are expressions in its symbols.

Buffers whose lives do not overlap share memory. Static buffers are placed greedily, the largest first (Pisarchyk and Lee, "Efficient Memory
Management for Deep Neural Net Inference", 2020), in one of two ways:

- in *slots*: a buffer takes one that is free while it lives, and the first to take it sets its size. Threads divide a kernel's result from
  its first element to its last, and a line of memory that another core wrote has to come from there before it is written again. So a
  buffer lies in the middle of its slot, where two threads meet whatever its size; of several slots it takes the one that was left last,
  which caches still hold. What that gains: docs/block_fusion.md.
- at the *lowest* offset that is free while it lives: several small buffers lie side by side where a large one was.

Slots are taken where they are at most `WASTE` times as large. A buffer of symbolic size takes a slot behind those; it is used again by
buffers that provably fit it.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from effc.compiler.ir.expr import Expr, const, floordiv, nonnegative

#: Bytes; a cache line, and the widest vector.
ALIGNMENT = 64
#: How many times as large as by lowest offsets slots may be: MobileNetV2 and EfficientNet-B0 take 1.11 to 1.24, ResNet-18's backward 1.68.
WASTE = 1.25
Bytes = TypeVar("Bytes", int, Expr)


@dataclass(frozen=True)
class Life:
    """First and last step at which a buffer holds something."""

    first: int
    last: int

    def overlaps(self, other: Life) -> bool:
        return self.first <= other.last and other.first <= self.last


@dataclass
class _Slot(Generic[Bytes]):
    start: Bytes
    size: Bytes
    lives: list[Life] = field(default_factory=list)

    def is_free(self, life: Life) -> bool:
        return not any(life.overlaps(other) for other in self.lives)

    def idle_before(self, life: Life) -> float:
        """Steps from the last use before."""
        return min((life.first - other.last for other in self.lives if other.last < life.first), default=math.inf)


def plan_arena(
    sizes: Sequence[Expr], lives: Mapping[int, Life], scratch: Collection[int] = (), *, cores: bool = True
) -> tuple[dict[int, Expr], Expr]:
    """Offsets of the buffers (those with a life) and the arena's size, in bytes. ``scratch``: buffers of which each thread has a part of
    its own: they share memory with no others, and start together. ``cores``: threads of cores with caches of their own run the kernels.
    """
    static = {i: -(-max(n, 1) // ALIGNMENT) * ALIGNMENT for i in lives if (n := sizes[i].constant) is not None}
    offsets, top = _placed({i: n for i, n in static.items() if i not in scratch}, lives, cores=cores)
    own, end_of_own = _in_slots({i: n for i, n in static.items() if i in scratch}, lives, centred=False)
    offsets |= {i: top + offset for i, offset in own.items()}
    found = {i: const(offset) for i, offset in offsets.items()}
    end, slots = const(top + end_of_own), list[_Slot[Expr]]()
    for i in sorted(lives.keys() - static.keys(), key=lambda i: lives[i].first):
        slot = next((s for s in slots if s.is_free(lives[i]) and nonnegative(s.size - sizes[i])), None)
        if slot is None:
            slot = _Slot(end, sizes[i])
            slots.append(slot)
            end += floordiv(slot.size + (ALIGNMENT - 1), const(ALIGNMENT)) * ALIGNMENT
        slot.lives.append(lives[i])
        found[i] = slot.start
    return found, end


def _placed(sizes: Mapping[int, int], lives: Mapping[int, Life], *, cores: bool) -> tuple[dict[int, int], int]:
    """Offsets of static buffers that are not scratch memory, and where they end."""
    lowest = _at_lowest(sizes, lives)
    if not cores:
        return lowest
    slots = _in_slots(sizes, lives, centred=True)
    return slots if slots[1] <= WASTE * lowest[1] else lowest


def _in_slots(sizes: Mapping[int, int], lives: Mapping[int, Life], *, centred: bool) -> tuple[dict[int, int], int]:
    """``centred``: a buffer lies in the middle of its slot, or else at its start."""
    slots, found, top = list[_Slot[int]](), dict[int, int](), 0
    for i in _largest_first(sizes, lives):
        size, life = sizes[i], lives[i]
        free = [s for s in slots if s.is_free(life)]
        if not free:
            free = [_Slot(top, size)]
            slots += free
            top += size
        slot = min(free, key=lambda s: (s.idle_before(life), s.size))
        slot.lives.append(life)
        middle = (slot.size - size) // 2 // ALIGNMENT * ALIGNMENT
        found[i] = slot.start + (middle if centred else 0)
    return found, top


def _at_lowest(sizes: Mapping[int, int], lives: Mapping[int, Life]) -> tuple[dict[int, int], int]:
    taken, found, top = list[tuple[int, int, int]](), dict[int, int](), 0  # taken: from, to, by which buffer; by offset
    for i in _largest_first(sizes, lives):
        offset = 0
        for start, end, other in taken:
            if start >= offset + sizes[i]:
                break
            if end > offset and lives[other].overlaps(lives[i]):
                offset = end
        found[i], end = offset, offset + sizes[i]
        insort(taken, (offset, end, i))
        top = max(top, end)
    return found, top


def _largest_first(sizes: Mapping[int, int], lives: Mapping[int, Life]) -> list[int]:
    return sorted(sizes, key=lambda i: (-sizes[i], lives[i].first, i))
