"""How a product's sum is cut into chains of additions and unrolled, as the templates do it."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

#: Products of a chain where one factor is packed, and of data alone; steps that a loop's body holds.
_PACKED, _DATA, _UNROLL = 128, 64, 4

#: Of `loops`. Of the innermost loop: steps that its body has, its turns, and steps behind it; of the two loops around that, turns. All that
#: is a chain: ``loop_chains`` of them, in a loop; then, where their length is no divisor, the same of what is left, ``rest_*``. The turns
#: of two loops around all of it. 0 steps: there is none; 1 turn: there is no loop.
LOOPS: tuple[str, ...] = (
    *("loop_body", "loop_turns", "loop_left", "loop_middle", "loop_middle_outer", "loop_chains"),
    *("rest_body", "rest_turns", "rest_left", "rest_middle", "rest_middle_outer"),
    *("loop_outer", "loop_outermost"),
)

_Piece = tuple[int, int, int, int, int]
_NOTHING: _Piece = (0, 1, 0, 1, 1)


def chain(sums: Sequence[int], packed: bool) -> int:
    """Products that are one chain, where sums are cut. ``sums``: sizes of the summed dimensions, outermost first."""
    at, length = _cut(sums, packed)
    return length * prod(sums[at + 1 :]) if length else prod(sums)


def loops(sums: Sequence[int], packed: bool, group: int, cut: bool) -> tuple[int, ...]:
    """Loops of a tile, by `LOOPS`. A step sums ``group`` neighbours; ``cut``: whether a long sum is cut."""
    sums = [size for size in sums if size > 1] or [1]
    at, length = _cut(sums, packed) if cut else (0, 0)
    if not length:
        return (*_piece(sums[-3:], group), 1, *_NOTHING, *_around(sums[:-3]))
    chains, rest = divmod(sums[at], length)
    whole, left = ([size, *sums[at + 1 :]] for size in (length, rest))
    return (*_piece(whole, group), chains, *(_piece(left, group) if rest else _NOTHING), *_around(sums[:at]))


def written_out(steps: int) -> tuple[int, ...]:
    """`loops` of a tile that has no loop: all its steps are in the code."""
    return (steps, 1, 0, 1, 1, 1, *_NOTHING, 1, 1)


def _piece(sums: Sequence[int], group: int) -> _Piece:
    return (*_unrolled(sums[-1], group), *_around(sums[:-1]))


def _around(sums: Sequence[int]) -> tuple[int, int]:
    """Turns of the loops over ``sums``, as of two, the inner one first."""
    return (sums[-1] if sums else 1), prod(sums[:-1])


def _cut(sums: Sequence[int], packed: bool) -> tuple[int, int]:
    """Which dimension is cut, and into blocks of how many of its points, a divisor of it where there is one; 0: none is."""
    usual = _PACKED if packed else _DATA
    longest = usual + usual // 2
    for at, size in enumerate(sums):
        each = prod(sums[at + 1 :])
        if 0 < each <= longest < size * each:
            shorter = range(longest // each, usual // (2 * each), -1)
            return at, next((n for n in shorter if size % n == 0), max(usual // each, 1))
    return 0, 0


def _unrolled(size: int, group: int) -> tuple[int, int, int]:
    """Steps of the innermost loop's body, its turns, and steps that are left: few are written out whole."""
    steps, more = size // group, int(size % group > 0)
    if steps <= 2 * _UNROLL:
        return steps + more, 1, 0
    body = next((n for n in range(2 * _UNROLL - 1, _UNROLL - 1, -1) if steps % n == 0), _UNROLL)
    return body, steps // body, steps % body + more
