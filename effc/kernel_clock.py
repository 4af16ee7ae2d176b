"""Times of a compiled model's kernels, taken in its own runs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch

from effc.compiler.build import Built
from effc.compiler.capture import backend
from effc.compiler.capture.devices import Build
from effc.compiler.ir.candidate import Latency
from effc.compiler.ir.options import Options
from effc.compiler.ir.program import Program
from effc.runtime.executable import Executable
from effc.runtime.stepwise import Observer, Step


class KernelClock:
    """Times every kernel call of what its ``builder`` built, while ``running()``.

    ``seconds`` of every run of a call, and its last step, each by the program's identity and the call's number.
    """

    def __init__(self) -> None:
        self.seconds: dict[tuple[int, int], list[float]] = {}
        self.steps: dict[tuple[int, int], Step] = {}
        self._programs: list[Program] = []  # held, so that no other gets the identity of one
        self._observer: Observer | None = None  # of runs that are watched
        self._current, self._started = 0, 0.0

    def builder(self, options: Options) -> Build:
        """The backend's, with executables that this clock can time."""
        build = backend.builder(options)

        def timed(text: str) -> Built:
            built = build(text)
            self._programs.append(built.executable.program)
            return replace(built, executable=cast(Executable, _Timed(self, built.executable)))

        return timed

    @contextmanager
    def running(self, observer: Observer | None = None) -> Iterator[None]:
        """Calls inside run kernel by kernel and are timed; or ``observer`` sees them, and they are not."""
        self._observer = observer or self
        try:
            yield
        finally:
            self._observer = None

    def latency(self, program: Program, call: int) -> Latency:
        """Of one kernel call of a program: the least of the runs, for whatever else the machine does only adds to it; its uncertainty is
        how far the least of every other run is from that of the rest.
        """
        seconds = self.seconds[id(program), call]
        one, other = min(seconds[::2]), min(seconds[1::2])
        return Latency(min(one, other), abs(one - other) / min(one, other))

    # -- what a stepwise run calls ------------------------------------------------------------------------------------
    def before(self, step: Step) -> None:
        self._started = time.perf_counter()

    def after(self, step: Step) -> None:
        spent = time.perf_counter() - self._started
        key = (self._current, step.number)
        self.seconds.setdefault(key, []).append(spent)
        self.steps[key] = step


class _Timed:
    """An executable that its clock may run kernel by kernel; all else is the executable's."""

    def __init__(self, clock: KernelClock, executable: Executable) -> None:
        self._clock, self._executable = clock, executable

    def __call__(
        self, symbols: Sequence[int], tensors: Sequence[torch.Tensor], *, validate: bool = False
    ) -> Sequence[torch.Tensor]:
        observer = self._clock._observer
        if observer is None:
            return self._executable(symbols, tensors, validate=validate)
        self._clock._current = id(self._executable.program)
        return self._executable.run_stepwise(symbols, tensors, observer, validate=validate)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._executable, name)
