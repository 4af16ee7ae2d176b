"""Fetching the next panel of a packed factor while the rows above this one are computed.

A panel is read from memory once and then, row tile by row tile, from L2. Without help the first tile of a panel waits for memory
(128 x 768 x 3072 with weights that no cache holds: 0.86-0.93 of what it reaches with help, two threads on Zen 5); so the tiles of one
panel bring the next one into L2, an equal share of it each, evenly over their steps.
"""

from __future__ import annotations

from dataclasses import dataclass

from effc.compiler.codegen.cpu.text import Builder, Value

#: Bytes of a cache line.
LINE = 64
#: Row tiles that share the work where their number is known only at run time; fewer leave a part to the processor's own prefetching.
USUAL_TURNS = 4


@dataclass(frozen=True)
class Ahead:
    """Of every stretch of the right factor that a tile's loop body reads, the lines that lie ``distance`` bytes further on are
    fetched. ``turns`` tiles share them, this one being number ``turn``; those beyond fetch the last lines again.
    """

    distance: Value
    turn: Value
    turns: int

    def fetch(self, b: Builder, at: Value, size: int) -> None:
        """This tile's lines for the stretch of ``size`` bytes at ``at``."""
        lines = -(-size // LINE)
        each = -(-lines // self.turns)
        first = b.minimum(b.mul(self.turn, each), lines - each)
        start = b.element_pointer(at, b.add(self.distance, b.mul(first, LINE)), "i8")
        for i in range(each):
            b.prefetch(b.element_pointer(start, b.index(i * LINE), "i8"))
