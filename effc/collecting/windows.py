"""Timing rivals robustly on a noisy machine: in turn, in short windows, of which those are rejected in which the machine did something
else.

A window is contaminated if the system took a core from this process meanwhile, or if the reference, a fixed piece of work on as many
threads, ran slower beside it than it can. Nothing is concluded from a rejected window; the turn is repeated later, after a pause.
"""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from effc.costmodel.traces import Timing

#: ``run(calls)`` makes so many calls and returns their seconds.
Run = Callable[[int], float]


@dataclass(frozen=True)
class Plan:
    """``rounds``: windows of each rival that count, ``fewest`` where a window takes long; ``window``: seconds that one lasts at least;
    ``patience``: windows for each that counts, before a rival is given up; ``pause``: seconds after a
    rejected one, which double while windows are rejected, up to ``longest_pause``.
    """

    rounds: int = 9
    fewest: int = 5
    window: float = 4e-4
    long: float = 5e-2
    patience: int = 3
    pause: float = 5e-3
    longest_pause: float = 0.2
    most_calls: int = 20_000


USUAL = Plan()
#: Runs, of which the fastest tells how many calls fill a window: one in which a core was taken tells nothing.
_LOOKS = 3


@dataclass(frozen=True)
class TooNoisy:
    """Of a rival that was given up: windows that were ``kept``, too few, and ``contaminated`` ones."""

    kept: int
    contaminated: int


class Reference:
    """Fixed pieces of work, each with how much slower than its fastest it may be. ``clean()`` runs them and tells whether all were fast."""

    def __init__(self, pieces: Sequence[tuple[Run, float]]) -> None:
        self._pieces = [(run, limit, [float("inf")]) for run, limit in pieces]

    def clean(self) -> bool:
        found = True
        for run, limit, best in self._pieces:
            seconds = run(1)
            best[0] = min(best[0], seconds)
            found &= seconds <= limit * best[0]
        return found


def measure(
    rivals: Sequence[Run],
    reference: Reference,
    plan: Plan = USUAL,
    preempted: Callable[[], int] = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw,
    sleep: Callable[[float], None] = time.sleep,
) -> list[Timing | TooNoisy]:
    """The timing of each rival, where enough of its windows were clean. ``preempted()``: how often the system has taken a core
    from this process so far.
    """
    counts = [_calls(run, plan) for run in rivals]
    wanted = [plan.rounds if seconds < plan.long else plan.fewest for _, seconds in counts]
    kept: list[list[float]] = [[] for _ in rivals]
    rejected = [0] * len(rivals)
    turn, before, pause = 0, reference.clean(), plan.pause
    while True:
        open_ = [
            i for i, k in enumerate(kept) if len(k) < wanted[i] and len(k) + rejected[i] < plan.patience * wanted[i]
        ]
        if not open_:
            break
        turn += 1
        for i in open_[turn % len(open_) :] + open_[: turn % len(open_)]:
            run, (calls, _) = rivals[i], counts[i]
            run(1)  # what the reference and the others displaced comes back into the caches
            taken = preempted()
            seconds = run(calls)
            undisturbed = preempted() == taken
            after = reference.clean()
            if before and after and undisturbed:
                kept[i].append(seconds / calls)
                pause = plan.pause
            else:
                rejected[i] += 1
                sleep(pause)
                pause = min(2 * pause, plan.longest_pause)
                after = reference.clean()
            before = after
    return [
        _timing(seconds, rejected[i], counts[i][0])
        if len(seconds) >= plan.fewest
        else TooNoisy(len(seconds), rejected[i])
        for i, seconds in enumerate(kept)
    ]


def _calls(run: Run, plan: Plan) -> tuple[int, float]:
    """How many calls fill a window, and the seconds of one; after calls that warm up."""
    run(1)
    calls, seconds = 1, min(run(1) for _ in range(_LOOKS))
    while seconds < plan.window and calls < plan.most_calls:
        more = calls * plan.window / max(seconds, 1e-9)
        calls = min(max(2 * calls, round(1.1 * more)), plan.most_calls)
        seconds = min(run(calls) for _ in range(_LOOKS))
    return calls, seconds / calls


def _timing(seconds: list[float], contaminated: int, calls: int) -> Timing:
    low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return Timing(
        median=median,
        low=low,
        high=high,
        least=min(seconds),
        rounds=len(seconds),
        contaminated=contaminated,
        calls=calls,
    )
