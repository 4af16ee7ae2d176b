"""Fetching the next panel of a packed factor while the rows above this one are computed.

A panel is read from memory once and then, row tile by row tile, from L2. Without help the first tile of a panel waits for memory; so
the tiles of one panel bring the next one into L2, an equal part of it each, evenly over their steps. With weights that no cache holds a
128 x 768 x 768 then reaches 0.95 of the peak of a Zen 5 core instead of 0.88, a 32 x 4096 x 4096 0.84 instead of 0.62.
"""

from __future__ import annotations

from dataclasses import dataclass

from effc.compiler.codegen.cpu.text import Builder, Value

#: Bytes of a cache line.
LINE = 64
#: Bytes between what one row multiplies and what it fetches. In turn, 3072 x 576 in 8 bits (`fixed_point`) from memory on two shared
#: Emerald Rapids cores took 106 us by 1 KiB, 85 by 4, 82 by 8 and by 12; in 4 bits 70, 59, 58 and 61; in NF4 88, whatever the distance.
DISTANCE = 8192
#: Row tiles that share the work where their number is known only at run time; fewer leave a part to the processor's own prefetching.
USUAL_TURNS = 4


@dataclass(frozen=True)
class Ahead:
    """``step`` bytes are fetched for each point of K, from ``start`` on: in order, which is how memory is fastest."""

    start: Value
    step: int

    @staticmethod
    def share(b: Builder, start: Value, turn: Value, turns: int, steps: Value, width: int) -> Ahead:
        """The part that tile number ``turn`` of ``turns`` fetches of a panel at ``start``: ``steps`` points of K of ``width`` bytes."""
        step = -(-width // turns)
        return Ahead(b.element_pointer(start, b.mul(b.mul(b.minimum(turn, turns - 1), steps), step), "i8"), step)

    @staticmethod
    def stream(b: Builder, start: Value, width: int) -> Ahead:
        """What lies `DISTANCE` behind the point at hand, in a panel at ``start`` with ``width`` bytes for each point of K."""
        return Ahead(b.element_pointer(start, b.index(DISTANCE), "i8"), width)

    def moved(self, b: Builder, points: Value) -> Ahead:
        """What is fetched from ``points`` further along K on."""
        return Ahead(b.element_pointer(self.start, b.mul(points, self.step), "i8"), self.step)

    def fetch(self, b: Builder, points: int) -> None:
        """The lines for the next ``points`` of K."""
        for at in range(0, points * self.step, LINE):
            b.prefetch(b.element_pointer(self.start, b.index(at), "i8"))
