"""The arena: one block of memory for all buffers of a region, at offsets that are expressions in its symbols.

Buffers whose lives do not overlap share memory. Static buffers are packed greedily, largest first, at the lowest offset that is
free during their life (Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net Inference", 2020: greedy by size). A buffer of
symbolic size takes a slot behind them; a slot is used again by buffers that provably fit it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from effc.compiler.ir.expr import Expr, const, floordiv, nonnegative

#: Bytes; a cache line, and the widest vector.
ALIGNMENT = 64


@dataclass(frozen=True)
class Life:
    """First and last step at which a buffer holds something."""

    first: int
    last: int

    def overlaps(self, other: Life) -> bool:
        return self.first <= other.last and other.first <= self.last


@dataclass
class _Slot:
    size: Expr
    lives: list[Life] = field(default_factory=list)


def plan_arena(sizes: Sequence[Expr], lives: Mapping[int, Life]) -> tuple[dict[int, Expr], Expr]:
    """Offsets of the buffers (those with a life) and the arena's size, in bytes."""
    static = {i: n for i in lives if (n := sizes[i].constant) is not None}
    offsets, top = _pack_static(static, lives)
    found = {i: const(offset) for i, offset in offsets.items()}
    total = const(top)
    slots: list[_Slot] = []
    homes: dict[int, _Slot] = {}
    for i in sorted((i for i in lives if i not in static), key=lambda i: lives[i].first):
        slot = next((s for s in slots if _fits(sizes[i], s, lives[i])), None)
        if slot is None:
            slot = _Slot(sizes[i])
            slots.append(slot)
        slot.lives.append(lives[i])
        homes[i] = slot
    starts: dict[int, Expr] = {}
    for slot in slots:
        starts[id(slot)] = total
        total = total + floordiv(slot.size + (ALIGNMENT - 1), const(ALIGNMENT)) * ALIGNMENT
    found.update({i: starts[id(slot)] for i, slot in homes.items()})
    return found, total


def _fits(size: Expr, slot: _Slot, life: Life) -> bool:
    return nonnegative(slot.size - size) and not any(life.overlaps(other) for other in slot.lives)


def _pack_static(sizes: Mapping[int, int], lives: Mapping[int, Life]) -> tuple[dict[int, int], int]:
    placed: list[tuple[int, int, Life]] = []  # offset, end, life
    offsets: dict[int, int] = {}
    for i in sorted(sizes, key=lambda i: (-sizes[i], i)):
        size = -(-max(sizes[i], 1) // ALIGNMENT) * ALIGNMENT
        offset = 0
        for start, end, life in sorted(placed, key=lambda p: p[0]):
            if life.overlaps(lives[i]) and start < offset + size and offset < end:
                offset = end
        offsets[i] = offset
        placed.append((offset, offset + size, lives[i]))
    return offsets, max((end for _, end, _ in placed), default=0)
