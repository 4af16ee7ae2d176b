"""Times of a compiled model's kernels, taken in its own runs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch

from effc.compiler.build import Built
from effc.compiler.ir.candidate import Latency
from effc.compiler.ir.program import Program
from effc.runtime.executable import Executable
from effc.runtime.stepwise import Step


class KernelClock:
    """Times every kernel call of the programs that ``timed`` has seen, while ``running()``."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[int, int], list[float]] = {}  # by the program's identity and the call's number
        self._programs: list[Program] = []  # held, so that no other gets the identity of one
        self._on = False
        self._current, self._started = 0, 0.0

    def timed(self, built: Built) -> Built:
        """``built`` with an executable that this clock can time."""
        self._programs.append(built.executable.program)
        return replace(built, executable=cast(Executable, _Timed(self, built.executable)))

    @contextmanager
    def running(self) -> Iterator[None]:
        """Calls inside run kernel by kernel and are timed."""
        self._on = True
        try:
            yield
        finally:
            self._on = False

    def latency(self, program: Program, call: int) -> Latency:
        """Of one kernel call of a program: the median, and the spread of the middle half of the runs."""
        seconds = sorted(self._seconds[id(program), call])
        median = statistics.median(seconds)
        quarter = len(seconds) // 4
        middle = seconds[quarter : len(seconds) - quarter]
        return Latency(median, (middle[-1] - middle[0]) / 2 / median if median else 0.0)

    # -- what a stepwise run calls ------------------------------------------------------------------------------------
    def before(self, step: Step) -> None:
        self._started = time.perf_counter()

    def after(self, step: Step) -> None:
        spent = time.perf_counter() - self._started
        self._seconds.setdefault((self._current, step.number), []).append(spent)


class _Timed:
    """An executable that its clock may run kernel by kernel; all else is the executable's."""

    def __init__(self, clock: KernelClock, executable: Executable) -> None:
        self._clock, self._executable = clock, executable

    def __call__(self, symbols: Sequence[int], tensors: Sequence[torch.Tensor], **how: bool) -> Sequence[torch.Tensor]:
        if not self._clock._on or how:
            return self._executable(symbols, tensors, **how)
        self._clock._current = id(self._executable.program)
        return self._executable.run_stepwise(symbols, tensors, self._clock)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._executable, name)
