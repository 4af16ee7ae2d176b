"""The arena: one block of memory for all buffers of a region, at offsets that are expressions in its symbols.

Buffers whose lives do not overlap share memory: they take the same *slot*. Of static buffers the largest come first (Pisarchyk and Lee,
"Efficient Memory Management for Deep Neural Net Inference", 2020: greedy by size), and a slot is as large as the first that took it; of
several the one that was left last is taken, which caches still hold. A buffer of symbolic size takes a slot behind those; it is used again
by buffers that provably fit it.

Threads divide a kernel's result from its first element to its last, and a line of memory that another core wrote has to come from there
before it is written again. So a static buffer lies in the middle of its slot, where two threads meet whatever its size. On two cores of
different L3 caches (150 ns from one to the other) MobileNetV2 takes 1.3 times as long where buffers lie at the start of each other
(docs/block_fusion.md).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from effc.compiler.ir.expr import Expr, const, floordiv, nonnegative

#: Bytes; a cache line, and the widest vector.
ALIGNMENT = 64
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
    sizes: Sequence[Expr], lives: Mapping[int, Life], scratch: Collection[int] = ()
) -> tuple[dict[int, Expr], Expr]:
    """Offsets of the buffers (those with a life) and the arena's size, in bytes. ``scratch``: buffers that threads divide otherwise, and do
    not fill: they share slots with each other alone, and lie at their start.
    """
    static = {i: -(-max(n, 1) // ALIGNMENT) * ALIGNMENT for i in lives if (n := sizes[i].constant) is not None}
    shared, top = _pack({i: n for i, n in static.items() if i not in scratch}, lives, 0)
    own, top = _pack({i: n for i, n in static.items() if i in scratch}, lives, top, threads_fill=False)
    found = {i: const(offset) for i, offset in {**shared, **own}.items()}
    end, slots = const(top), list[_Slot[Expr]]()
    for i in sorted(lives.keys() - static.keys(), key=lambda i: lives[i].first):
        slot = next((s for s in slots if s.is_free(lives[i]) and nonnegative(s.size - sizes[i])), None)
        if slot is None:
            slot = _Slot(end, sizes[i])
            slots.append(slot)
            end += floordiv(slot.size + (ALIGNMENT - 1), const(ALIGNMENT)) * ALIGNMENT
        slot.lives.append(lives[i])
        found[i] = slot.start
    return found, end


def _pack(
    sizes: Mapping[int, int], lives: Mapping[int, Life], top: int, *, threads_fill: bool = True
) -> tuple[dict[int, int], int]:
    """Offsets of static buffers, from ``top`` on, and where they end. ``threads_fill``: half of each is one of two threads'."""
    slots, found = list[_Slot[int]](), dict[int, int]()
    for i in sorted(sizes, key=lambda i: (-sizes[i], lives[i].first, i)):
        size, life = sizes[i], lives[i]
        free = [s for s in slots if s.is_free(life)]
        if not free:
            free = [_Slot(top, size)]
            slots += free
            top += size
        slot = min(free, key=lambda s: (s.idle_before(life), s.size))
        slot.lives.append(life)
        middle = (slot.size - size) // 2 // ALIGNMENT * ALIGNMENT
        found[i] = slot.start + (middle if threads_fill else 0)
    return found, top
