"""Times of a compiled model's kernels, taken in its own runs."""

from __future__ import annotations

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
        """Of one kernel call of a program: the least of the runs, for whatever else the machine does only adds to it; its uncertainty is
        how far the least of every other run is from that of the rest.
        """
        seconds = self._seconds[id(program), call]
        one, other = min(seconds[::2]), min(seconds[1::2])
        return Latency(min(one, other), abs(one - other) / min(one, other))

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
