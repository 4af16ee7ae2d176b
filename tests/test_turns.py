"""Timing in turn: the interval of a median, and when rounds end."""

from __future__ import annotations

import random

import pytest

from effc.turns import Interval, Turns, in_turn


@pytest.mark.parametrize("count_", [6, 15, 45])
def test_the_interval_holds_the_median_as_often_as_it_says(count_: int) -> None:
    """Of 2,000 samples of a skewed distribution, whose median is 1; 95 % less four standard deviations of the count."""
    random_ = random.Random(count_)
    held = 0
    for _ in range(2000):
        found = Interval.of([2 ** random_.gauss(0, 2) for _ in range(count_)])
        assert found.low <= found.median <= found.high
        held += found.low <= 1 <= found.high
    assert held >= 1900 - 4 * (2000 * 0.05 * 0.95) ** 0.5


def test_few_values_give_their_range() -> None:
    assert Interval.of([3.0, 1.0, 2.0]) == Interval(1.0, 2.0, 3.0)
    assert Interval.of([1.0]) == Interval(1.0, 1.0, 1.0)


def test_ratios_are_those_within_rounds() -> None:
    """The machine becomes ten times slower in the middle, which moves neither."""
    rounds = [(2.0, 1.0)] * 8 + [(20.0, 10.0)] * 8
    found = Turns(tuple(rounds)).ratio(0, 1)
    assert (found.low, found.median, found.high) == (2.0, 2.0, 2.0)
    assert Turns(tuple(rounds)).ratio(1, 0).median == 0.5


def test_rounds_end_when_there_is_a_verdict_and_the_first_does_not_count() -> None:
    rounds = iter([(100.0, 100.0)] + [(1.0, 2.0)] * 100)
    found = in_turn(lambda: next(rounds), lambda turns: turns.ratio(0, 1).high < 1)
    assert found.rounds == ((1.0, 2.0),) * 9
    assert (found.median(0), found.median(1)) == (1.0, 2.0)


def test_verdicts_on_what_is_equal_are_rare() -> None:
    """All looks together: 5 % of 1,000 rivals, and four standard deviations of the count."""
    random_, wrong = random.Random(0), 0

    def differs(turns: Turns) -> bool:
        ratio = turns.ratio(0, 1)
        return not ratio.low <= 1 <= ratio.high

    for _ in range(1000):
        wrong += differs(in_turn(lambda: (2 ** random_.gauss(0, 1), 1.0), differs))
    assert wrong <= 50 + 4 * (1000 * 0.05 * 0.95) ** 0.5


def test_without_a_verdict_there_is_an_end() -> None:
    assert len(in_turn(lambda: (1.0, 1.0), lambda turns: turns.ratio(0, 1).high < 1).rounds) == 44
