"""A model compiled by one set of options after the other, and run on the batches that it was calibrated with.

It is captured once for the first batch, on which kernels are timed, and once more for batches of other forms.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import nn

from effc.calibrating.calibration import cloned
from effc.compiler.capture.owner import Names, Owner
from effc.compiler.capture.recording import Recording, record
from effc.compiler.compress.compressor import Compressed
from effc.compiler.compress.sites import WeightSite
from effc.compiler.ir.calibration import Calibration
from effc.compiler.ir.candidate import Latency
from effc.compiler.ir.errors import UnsupportedError
from effc.compiler.ir.options import Options
from effc.compiler.ir.site import Site, sites_of
from effc.kernel_clock import KernelClock
from effc.metrics import Error, UserMetric, measured
from effc.planning.captured import Asked, Captured
from effc.planning.recompiling import compiled_or_refused
from effc.runtime.structure import Tree, flatten

#: Runs of the first batch that are not timed; in which kernels are; how often so many more, while times are unclear; and the share of all
#: time that may be unclear.
_WARM, _ROUNDS, _MORE, _UNCLEAR = 3, 7, 4, 0.1
#: Sets of options that are lowered at once: while one waits for the toolchain, another is rewritten.
_AT_ONCE = 2
#: Compilations of a module whose forward is compiled by itself: of a first batch, and of sizes that vary.
_A_MODULE = 2


class Kernels(Protocol):
    """What a model becomes by some options: ``sites``: its kernels, for the first batch, each with its place in a program."""

    @property
    def recording(self) -> Recording: ...

    @property
    def sites(self) -> tuple[Site, ...]: ...

    def latencies(self) -> list[Latency]:
        """Of each site."""
        ...


@dataclass(frozen=True)
class Compiled:
    """`Kernels`, timed by `Trial.time`. ``call`` runs the model on arguments of the first batch's form, ``other`` on any."""

    call: Callable[..., Any]
    other: Callable[..., Any]
    recording: Recording
    clock: KernelClock
    sites: tuple[Site, ...]

    def latencies(self) -> list[Latency]:
        calls = [(program, n) for program, _ in self.recording.programs for n in range(len(program.calls))]
        return [self.clock.latency(program, number) for program, number in calls]


class Trial:
    """``calibration``: of ``model``, which runs without gradients."""

    def __init__(self, model: nn.Module, calibration: Calibration) -> None:
        self.model, self.calibration = model, calibration
        self._first, self._others = Captured(model), Captured(model)

    def compile(self, options: Options) -> Compiled:
        """The model by ``options``, run once on the first batch."""
        clock = KernelClock()
        call, other = (captured.compiled(options, clock.builder) for captured in (self._first, self._others))
        with record() as recording:
            self.run(call, 0)
        return Compiled(call, other, recording, clock, tuple(sites_of(recording.programs)))

    def lower(self, asked: Sequence[Asked]) -> list[Recording | None]:
        """What `compile` would record of each, without making code. After the first `compile`. None where options refuse what PyTorch would
        have to run.
        """
        with ThreadPoolExecutor(_AT_ONCE, "lower", torch.set_num_threads, (torch.get_num_threads(),)) as threads:
            return list(threads.map(self._lowered, asked))

    def compress(self, options: Options) -> list[Compressed]:
        """What they make of the weights, graph by graph, without lowering anything; after the first `compile`."""
        return self._first.compressed(options)

    def sites(self) -> dict[str, tuple[WeightSite, torch.Tensor]]:
        """The weights of which there may be other forms, by name, in the order of the graphs; after the first `compile`. Without those of
        modules that are not registered: a plan has no names for them.
        """
        return {name: found for name, found in self._first.sites().items() if name in self.names}

    def unregistered(self) -> list[str]:
        """The names by which Dynamo found weights that `sites` leaves out."""
        return [name for name in self._first.sites() if name not in self.names]

    @cached_property
    def names(self) -> Names:
        """Of the model's parameters and buffers."""
        return Owner(self.model).names()

    def _lowered(self, asked: Asked) -> Recording | None:
        try:
            return self._first.lowered(asked)
        except UnsupportedError:
            return None

    def time(self, *compiled: Compiled) -> None:
        """Time the kernels of all, in turn, on the first batch; longer on a machine that does other things."""
        for _ in range(_WARM):
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

    def error(self, compiled: Compiled, metric: str | UserMetric) -> Error:
        """By the metric of the whole model, over the batches held out; over all where none are."""
        calls = [compiled.call if form == self._forms[0] else compiled.other for form in self._forms]
        outputs = [self.run(call, number) for number, call in enumerate(calls)]
        batches = [args if not kwargs else (*args, *kwargs.values()) for args, kwargs in self.calibration.batches]
        seen = self.calibration.seen if self.calibration.held_out else 0
        return measured(metric, self.calibration.outputs, outputs, batches, seen)

    @cached_property
    def _forms(self) -> list[tuple[Tree, list[object]]]:
        """Of each batch, all that Dynamo may make another graph for: what is no tensor, and sizes, strides and dtypes."""
        trees = [flatten(batch) for batch in self.calibration.batches]
        return [(tree, [(t.shape, t.stride(), t.dtype) for t in tensors]) for tree, tensors in trees]

    def run(self, call: Callable[..., Any], number: int) -> Any:
        """The outputs for a batch. InputError: Dynamo would run it in eager, because it has compiled the model too often."""
        args, kwargs = cloned(self.calibration.batches[number])
        with torch.no_grad(), compiled_or_refused(self._compilations):
            return call(*args, **kwargs)

    @cached_property
    def _compilations(self) -> int:
        """How often Dynamo may compile one function: for each form of the batches, and, around graph breaks, for each module that has it as
        its forward.
        """
        return len(self.calibration.batches) + _A_MODULE * sum(1 for _ in self.model.modules())


def _is_clear(compiled: Compiled) -> bool:
    """Whether the times of most kernels, by the time that they take, are known well."""
    latencies = compiled.latencies()
    unclear = sum(min(latency.uncertainty, 1.0) * latency.seconds for latency in latencies)
    return unclear <= _UNCLEAR * sum(latency.seconds for latency in latencies)
