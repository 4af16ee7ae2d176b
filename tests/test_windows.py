"""Timing on a noisy machine: windows in which it did something else do not count."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest

from effc.collecting import windows
from effc.collecting.windows import Plan, Reference, TooNoisy, measure
from effc.costmodel.traces import Timing


class Machine:
    """A machine in which a call takes ``cost`` seconds of its own, and ``slow(n)`` tells how much slower the n-th piece of work is."""

    def __init__(self, slow: dict[int, float] | None = None) -> None:
        self.done, self.taken, self.slow = 0, 0, slow or {}
        self.slept = 0.0

    def rival(self, cost: float) -> windows.Run:
        def run(calls: int) -> float:
            self.done += 1
            return calls * cost * self.slow.get(self.done, 1.0)

        return run

    def sleep(self, seconds: float) -> None:
        self.slept += seconds

    def measure(self, costs: Sequence[float], plan: Plan) -> list[Timing | TooNoisy]:
        reference = Reference([(self.rival(1e-4), 1.15)])
        return measure([self.rival(c) for c in costs], reference, plan, lambda: self.taken, self.sleep)

    def timings(self, costs: Sequence[float], plan: Plan) -> list[Timing]:
        found = self.measure(costs, plan)
        assert all(isinstance(t, Timing) for t in found)
        return [t for t in found if isinstance(t, Timing)]


def test_a_quiet_machine_gives_the_time_itself() -> None:
    machine = Machine()
    short, long = machine.timings([1e-5, 2e-4], Plan())
    assert [short.median, long.median] == pytest.approx([1e-5, 2e-4])
    assert (short.rounds, short.contaminated) == (long.rounds, long.contaminated) == (9, 0)
    assert short.calls * short.median >= 4e-4
    assert long.calls * long.median >= 4e-4
    assert short.calls > 10 * long.calls > 0
    assert machine.slept == 0


def test_a_window_is_long_enough_for_what_a_call_from_python_costs() -> None:
    (found,) = measure([lambda calls: 2e-6 + calls * 2e-8], Reference([]), Plan(), lambda: 0, lambda s: None)
    assert isinstance(found, Timing)
    assert found.median == pytest.approx(2e-8, rel=0.02)


def test_windows_beside_a_slow_reference_do_not_count() -> None:
    # Everything between two moments is slower, the reference too: a burst of other work.
    machine = Machine(dict.fromkeys(range(15, 30), 1.7))
    (found,) = machine.timings([1e-4], Plan())
    assert found.contaminated > 0
    assert [found.low, found.high] == pytest.approx([1e-4, 1e-4])
    assert machine.slept > 0


def test_windows_in_which_a_core_was_taken_do_not_count() -> None:
    machine = Machine()
    plain, turn = machine.rival(1e-4), itertools.count()

    def run(calls: int) -> float:
        machine.taken += next(turn) % 5 == 0
        return plain(calls)

    reference = Reference([(machine.rival(1e-4), 1.15)])
    (found,) = measure([run], reference, Plan(), lambda: machine.taken, machine.sleep)
    assert isinstance(found, Timing)
    assert found.contaminated > 0
    assert found.rounds == 9


def test_a_machine_that_is_never_quiet_gives_nothing() -> None:
    noise = {n: 1.0 + (n % 2) for n in range(1000)}
    for found in Machine(noise).measure([1e-4, 1e-3], Plan()):
        assert isinstance(found, TooNoisy)
        assert found.kept < 5
        assert found.kept + found.contaminated == 27


def test_long_windows_are_fewer() -> None:
    short, long = Machine().timings([1e-4, 0.2], Plan())
    assert (short.rounds, long.rounds) == (9, 5)
