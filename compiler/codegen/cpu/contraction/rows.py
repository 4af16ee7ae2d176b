"""How the rows of a contraction are cut into register tiles: into as few as the tallest tile allows, and these as even as can be.

A remainder of one or two rows would run at the latency of its few multiply-adds and read a whole panel for them; even tiles cost
what their rows cost (17 rows under tiles of 8: 6 + 6 + 5). Each height that occurs has code of its own, without a row too many: all of
them up to the tallest where the number of rows is known only at run time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from effc.compiler.codegen.cpu.text import Builder, Value
from effc.compiler.ir.expr import Expr


def split(rows: int, tallest: int) -> list[tuple[int, int]]:
    """``(tiles, height)`` of the one or two heights that occur, the greater first."""
    tiles = -(-rows // tallest)
    if tiles == 0:
        return []
    each, more = divmod(rows, tiles)
    return [(more, each + 1), (tiles - more, each)] if more else [(tiles, each)]


def heights(rows: Expr, tallest: int) -> list[int]:
    """All heights that occur, the most frequent of many rows first."""
    if rows.constant is None:
        return list(range(tallest, 0, -1))
    return [height for _, height in split(rows.constant, tallest)] or [tallest]


def place(b: Builder, rows: Value, tiles: Value, turn: Value) -> tuple[Value, Value]:
    """First row and height of tile number ``turn``."""
    tiles = b.maximum(tiles, 1)
    each, more = b.div(rows, tiles), b.rem(rows, tiles)
    first = b.mul(turn, each)
    if b.integer_of(more) == 0:
        return first, each
    taller = b.cast("arith.extui", b.compare("arith.cmpi", "slt", turn, more), "i64")
    return b.add(first, b.minimum(turn, more)), b.add(each, taller)


def by_height(b: Builder, height: Value, known: Sequence[int], write: Callable[[int], None]) -> None:
    """``write(n)`` for each of the ``known`` heights; the one that is ``height`` is run."""
    if len(known) == 1:
        write(known[0])
        return

    def this() -> Sequence[Value]:
        write(known[0])
        return []

    def others() -> Sequence[Value]:
        by_height(b, height, known[1:], write)
        return []

    b.choose(b.compare("arith.cmpi", "eq", height, b.index(known[0])), (), this, others)
