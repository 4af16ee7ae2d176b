"""How a product's sum is cut into chains of additions and unrolled, as the templates do it."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

#: Products of a chain where one factor is packed, and of data alone; steps that a loop's body holds.
_PACKED, _DATA, _UNROLL = 128, 64, 4


def chain(sums: Sequence[int], packed: bool) -> int:
    """Products that are one chain. ``sums``: sizes of the summed dimensions, outermost first."""
    at, length = _cut(sums, packed)
    return length * prod(sums[at + 1 :]) if length else prod(sums)


def written(sums: Sequence[int], packed: bool, group: int) -> int:
    """Steps of the sum that a tile's code has; a step sums ``group`` neighbours."""
    sums = [size for size in sums if size > 1] or [1]
    at, length = _cut(sums, packed)
    rest = sums[at] % length if length else 0
    if not length or at < len(sums) - 1:
        return _unrolled(sums[-1], group) * (1 + (rest > 0))
    return _unrolled(length, group) + (_unrolled(rest, group) if rest else 0)


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


def _unrolled(size: int, group: int) -> int:
    """Steps that the innermost loop's body and what is left of it hold: few are written out whole."""
    steps = size // group
    body = max(steps, 1)
    if steps > 2 * _UNROLL:
        body = next((n for n in range(2 * _UNROLL - 1, _UNROLL - 1, -1) if steps % n == 0), _UNROLL)
    return (body if steps >= body else 0) + steps % body + (size % group > 0)
