"""A model compiled by one set of options after the other, and run on the batches that it was calibrated with."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from effc.apart import compiled_apart
from effc.calibration import cloned
from effc.compiler.capture.recording import Recording, record
from effc.compiler.ir.calibration import Calibration
from effc.compiler.ir.candidate import Latency
from effc.compiler.ir.options import Options
from effc.compiler.ir.site import Site, sites_of
from effc.kernel_clock import KernelClock
from effc.metrics import Error, UserMetric, measured

#: Runs of the first batch in which kernels are timed, after as many that are not; how often so many more, while times are unclear; and the
#: share of all time that may be unclear.
_ROUNDS, _MORE, _UNCLEAR = 7, 4, 0.1


@dataclass(frozen=True)
class Compiled:
    """``call`` runs the model on arguments; ``sites``: its kernels, for the first batch, each with its place in a program."""

    call: Callable[..., Any]
    recording: Recording
    clock: KernelClock
    sites: tuple[Site, ...]

    def latencies(self) -> list[Latency]:
        """Of each site, after `Trial.time`."""
        calls = [(program, n) for program, _ in self.recording.programs for n in range(len(program.calls))]
        return [self.clock.latency(program, number) for program, number in calls]


class Trial:
    """``calibration``: of ``model``, which runs without gradients."""

    def __init__(self, model: nn.Module, calibration: Calibration) -> None:
        self.model, self.calibration = model, calibration

    def compile(self, options: Options) -> Compiled:
        """The model by ``options``, run once on the first batch."""
        clock = KernelClock()
        call = compiled_apart(self.model, options, clock.builder)
        with record() as recording:
            self.run(call, 0)
        return Compiled(call, recording, clock, tuple(sites_of(recording.programs)))

    def time(self, *compiled: Compiled) -> None:
        """Time the kernels of all, in turn, on the first batch; longer on a machine that does other things."""
        for _ in range(_ROUNDS):
            for one in compiled:
                self.run(one.call, 0)
        for _ in range(1 + _MORE):
            for _ in range(_ROUNDS):
                for one in compiled:
                    with one.clock.running():
                        self.run(one.call, 0)
            if all(map(_is_clear, compiled)):
                break

    def seconds(self, *compiled: Compiled) -> list[float]:
        """Of one whole call of each on the first batch, one after the other."""
        found = []
        for one in compiled:
            args, kwargs = cloned(self.calibration.batches[0])
            with torch.no_grad():
                started = time.perf_counter()
                one.call(*args, **kwargs)
                found.append(time.perf_counter() - started)
        return found

    def error(self, call: Callable[..., Any], metric: str | UserMetric) -> Error:
        """By the metric of the whole model, over all batches."""
        outputs = [self.run(call, number) for number in range(len(self.calibration.batches))]
        batches = [args if not kwargs else (*args, *kwargs.values()) for args, kwargs in self.calibration.batches]
        return measured(metric, self.calibration.outputs, outputs, batches)

    def run(self, call: Callable[..., Any], number: int) -> Any:
        """The outputs for a batch."""
        args, kwargs = cloned(self.calibration.batches[number])
        with torch.no_grad():
            return call(*args, **kwargs)


def _is_clear(compiled: Compiled) -> bool:
    """Whether the times of most kernels, by the time that they take, are known well."""
    latencies = compiled.latencies()
    unclear = sum(min(latency.uncertainty, 1.0) * latency.seconds for latency in latencies)
    return unclear <= _UNCLEAR * sum(latency.seconds for latency in latencies)
