"""Rivals timed in turn: what one takes over another, with an interval that other work on the machine widens and does not move."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import comb

#: Rounds after which a verdict is first looked for, how many more until the next look, and after which there is none. Nine are the fewest
#: whose range is an interval of `_EACH`.
_FIRST, _MORE, _MOST = 9, 5, 44
_LOOKS = 1 + (_MOST - _FIRST) // _MORE
#: That the interval of a median holds the true one: at all looks, and at each (Bonferroni), as the first that decides ends the rounds.
_CONFIDENCE = 0.95
_EACH = 1 - (1 - _CONFIDENCE) / _LOOKS


@dataclass(frozen=True)
class Interval:
    """Of a median: ``low`` to ``high`` hold the true one with a confidence that was asked for, or more."""

    low: float
    median: float
    high: float

    @staticmethod
    def of(values: Sequence[float], confidence: float = _CONFIDENCE) -> Interval:
        """By order statistics, whatever the distribution (David, Nagaraja: "Order Statistics", 2003, 7.1); of too few values (five for
        95 %) their range.
        """
        ordered, count = sorted(values), len(values)
        # Of the interval from the value of this rank to the one of the same rank from above:
        outside, rank = 2 * 0.5**count, 0
        while rank + 1 < count - rank - 1:
            outside += 2 * comb(count, rank + 1) * 0.5**count
            if outside > 1 - confidence:
                break
            rank += 1
        return Interval(ordered[rank], statistics.median(ordered), ordered[count - 1 - rank])


@dataclass(frozen=True)
class Turns:
    """``rounds``: seconds of each rival, one after the other, in each round."""

    rounds: tuple[tuple[float, ...], ...]

    def median(self, rival: int) -> float:
        """Seconds."""
        return statistics.median(r[rival] for r in self.rounds)

    def ratio(self, one: int, other: int) -> Interval:
        """How many times as long ``one`` takes as ``other``, by the ratios within rounds; so wide that a look after every few rounds, which
        `in_turn` ends at the first verdict, is wrong in 5 % of cases at most, all looks together.
        """
        return Interval.of([r[one] / r[other] for r in self.rounds], _EACH)


def in_turn(seconds: Callable[[], Sequence[float]], settled: Callable[[Turns], bool]) -> Turns:
    """Rounds, each ``seconds()`` of all rivals, until ``settled`` by what there is or there are enough; the first one warms up."""
    seconds()
    rounds: list[tuple[float, ...]] = []
    while len(rounds) < _MOST:
        rounds.append(tuple(seconds()))
        looked = len(rounds) >= _FIRST and (len(rounds) - _FIRST) % _MORE == 0
        if looked and settled(Turns(tuple(rounds))):
            break
    return Turns(tuple(rounds))
