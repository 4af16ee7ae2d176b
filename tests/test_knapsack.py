"""The choice of one option at each place: against every choice that there is."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Sequence

import pytest

from effc.costmodel.knapsack import Edge, Quantity, least


def every(quantity: Quantity) -> Iterator[tuple[int, ...]]:
    return itertools.product(*(range(len(values)) for values in quantity.values))


def brute(objective: Quantity, limits: Sequence[tuple[Quantity, float]]) -> float | None:
    """The least sum of all choices within the limits."""
    kept = (c for c in every(objective) if all(q.total(c) <= limit for q, limit in limits))
    return min((objective.total(c) for c in kept), default=None)


def draw(random_: random.Random, sizes: Sequence[int], scale: float) -> Quantity:
    """Values of very different sizes, as times of kernels are."""
    return Quantity(tuple(tuple(scale * 10 ** random_.uniform(-3, 0) for _ in range(size)) for size in sizes))


def edges(random_: random.Random, sizes: Sequence[int], scale: float) -> tuple[Edge, ...]:
    found = []
    for left, right in itertools.combinations(range(len(sizes)), 2):
        if random_.random() < 0.4:
            one, other = (tuple(random_.choice((0, 1)) for _ in range(sizes[place])) for place in (left, right))
            costs = ((0.0, scale * random_.random()), (scale * random_.random(), 0.0))
            found.append(Edge(left, right, one, other, costs))
    return tuple(found)


@pytest.mark.parametrize("seed", range(40))
def test_the_least_of_all_choices(seed: int) -> None:
    """Times in seconds, squared errors and bytes: of very different sizes, with one limit or two, tight or none."""
    random_ = random.Random(seed)
    sizes = [random_.randint(1, 4) for _ in range(random_.randint(1, 6))]
    times, errors, bytes_ = (draw(random_, sizes, scale) for scale in (1e-4, 1e-5, 1e7))
    times = Quantity(times.values, edges(random_, sizes, 1e-5))
    limits = [
        (q, q.floor + random_.choice((0.1, 0.5, 0.9)) * (sum(map(max, q.values)) - q.floor)) for q in (errors, bytes_)
    ][: random_.randint(0, 2)]
    found, expected = least(times, limits), brute(times, limits)
    if expected is None:
        assert found is None
        return
    assert found is not None
    assert all(q.total(found.options) <= limit * (1 + 1e-9) for q, limit in limits)
    assert times.total(found.options) == pytest.approx(expected, rel=1e-4)
    assert found.gap == 0.0


@pytest.mark.parametrize("seed", range(10))
def test_costs_between_places_count_in_a_limit_too(seed: int) -> None:
    random_ = random.Random(1000 + seed)
    sizes = [3, 2, 4, 3]
    errors, times = draw(random_, sizes, 1e-4), draw(random_, sizes, 1e-4)
    times = Quantity(times.values, edges(random_, sizes, 1e-4))
    limits = [(times, times.floor + 0.3 * (sum(map(max, times.values)) - times.floor))]
    found, expected = least(errors, limits), brute(errors, limits)
    assert (found is None) == (expected is None)
    if found is not None:
        assert times.total(found.options) <= limits[0][1] * (1 + 1e-9)
        assert errors.total(found.options) == pytest.approx(expected, rel=1e-4)


def test_a_limit_that_is_met_exactly() -> None:
    times = Quantity(((3.0, 1.0), (3.0, 1.0)))
    errors = Quantity(((0.0, 0.01**2), (0.0, 0.01**2)))
    for allowance, expected in ((2 * 0.01**2, (1, 1)), (0.01**2, None), (0.0, (0, 0))):
        found = least(times, [(errors, allowance)])
        assert found is not None
        assert sum(found.options) == 1 if expected is None else found.options == expected


def test_no_choice_is_within_the_limit() -> None:
    values = Quantity(((2.0, 3.0), (1.0, 4.0)))
    assert least(values, [(values, 2.9)]) is None
    assert least(values, [(values, 3.0)]) is not None


def test_two_limits_that_exclude_each_other() -> None:
    one, other = Quantity(((0.0, 1.0), (0.0, 1.0))), Quantity(((1.0, 0.0), (1.0, 0.0)))
    assert least(one, [(one, 0.5), (other, 0.5)]) is None


def test_an_infinite_limit_is_none_and_nothing_is_chosen_of_nothing() -> None:
    values = Quantity(((2.0, 1.0),))
    found = least(values, [(values, math.inf)])
    assert found is not None
    assert found.options == (1,)
    empty = least(Quantity(()), [])
    assert empty is not None
    assert empty.options == ()


def test_many_places_are_near_the_best_and_say_how_near() -> None:
    """300 places of 10 options, where no search of all is possible: a fifth of the places at their fastest, the others at their most exact,
    keeps the limit in the mean, and is not better.
    """
    random_ = random.Random(7)
    sizes = [10] * 300
    times, errors = draw(random_, sizes, 1e-4), draw(random_, sizes, 1e-5)
    limit = errors.floor + 0.2 * (sum(map(max, errors.values)) - errors.floor)
    found = least(times, [(errors, limit)])
    assert found is not None
    assert errors.total(found.options) <= limit * (1 + 1e-9)
    assert times.total(found.options) <= times.floor + 0.8 * (sum(map(max, times.values)) - times.floor)
    assert found.gap <= 0.011
