"""What the processes of a measurement serve: one system each, the reference in float64, and the machine's limits."""

from __future__ import annotations

import gc
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
from torch import Tensor, nn

from effc.bench import kernels, models
from effc.bench.kernels.kernel import Kernel
from effc.bench.models import Case
from effc.bench.places import place
from effc.bench.systems import SYSTEMS, Setting
from effc.bench.systems.system import DTYPES, Call, cast, tensors
from effc.bench.work import Work, work_of
from effc.compiler.codegen.cpu.target import Target
from effc.costmodel.hardware import Speed
from effc.speed import Probe

#: Runs of each probe in a round: 20 ms or so.
_PROBES = 6
#: Batches to calibrate int8 with, and the first one's seed, far from those that ``inputs(0, 0)`` uses.
_BATCHES, _SEED = 8, 1000


@dataclass(frozen=True)
class Subject:
    """What is measured: a model by name, or a kernel; ``small`` as in ``models.build``, of models."""

    kind: str
    name: str
    small: bool = False

    def build(self, *, dense: bool = False) -> tuple[nn.Module, tuple[Any, ...]]:
        """With the same weights and inputs in every process. ``dense``: in place of a compressed kernel that torch does not have, the float
        one.
        """
        case = self._case(dense)
        return case.module, case.inputs(0, 0)

    @property
    def kernel(self) -> Kernel | None:
        return kernels.KERNELS[self.name] if self.kind == "kernel" else None

    def calibration(self) -> list[tuple[Any, ...]]:
        """Other inputs, the same in every process."""
        case = self._case()
        return [case.inputs(_SEED + i, 0) for i in range(_BATCHES)]

    def _case(self, dense: bool = False) -> Case:
        return models.build(self.name, self.small) if self.kind == "model" else kernels.build(self.name, dense=dense)


@dataclass(frozen=True)
class Prepared:
    """``first_call``: seconds from the float32 model to the first result. ``error``: relative L2 to the reference, of the worst
    output. ``peak_memory``: bytes until then.
    """

    first_call: float
    error: float
    peak_memory: int


class Runner:
    """One system in this process."""

    def __init__(self, system: str, setting: Setting) -> None:
        torch.set_num_threads(setting.threads)
        torch.set_grad_enabled(False)
        self._system, self._setting, self._place = SYSTEMS[system], setting, place(setting.device)
        self._call: Call = list
        self._estimate = 0.0

    def prepare(self, subject: Subject, reference: Path) -> Prepared:
        """Compile and call once, with an empty cache where the process's environment names an empty one."""
        self._call, self._estimate = list, 0.0
        torch._dynamo.reset()  # or many kernels of one class would meet its limit of recompilations
        gc.unfreeze()  # what the last subject left behind is garbage now
        gc.enable()
        gc.collect()
        module, inputs = subject.build(dense=self._system.name == "eager")
        calibration = subject.calibration() if self._setting.dtype == "int8" else []
        module, inputs = self._place.placed(module, inputs)
        start = time.perf_counter()
        setting = replace(self._setting, passes=() if subject.kernel is None else subject.kernel.passes)
        self._call = self._system.prepare(module, inputs, setting, calibration)
        results = [t.cpu() for t in self._call()]
        first_call = time.perf_counter() - start
        error = relative_error(results, torch.load(reference))
        peak = self._place.peak_memory()
        del module, inputs, calibration, results
        self.seconds(0.0)  # the first calls after compilation may still adapt
        gc.collect()
        gc.freeze()
        gc.disable()
        self._place.reset_memory()
        return Prepared(first_call, error, peak)

    def seconds(self, at_least: float) -> float:
        """Of one call: the mean of as many as fill ``at_least`` seconds, after as long of calls that are not timed."""
        started = time.perf_counter()
        self._call()
        while time.perf_counter() - started < at_least:
            self._call()
        count = max(1, math.ceil(at_least / self._estimate)) if self._estimate else 1
        self._estimate = self._place.seconds(self._call, count) / count
        return self._estimate

    def peak_memory(self) -> int:
        """Bytes since ``prepare`` ended."""
        return self._place.peak_memory()


class Reference:
    """The model in float64, and the work that it is."""

    def __init__(self, setting: Setting) -> None:
        torch.set_num_threads(setting.threads)
        torch.set_grad_enabled(False)
        self._dtype = DTYPES[setting.dtype]

    def prepare(self, subject: Subject, path: Path) -> Work:
        """Writes the results to ``path``."""
        work = work_of(*cast(*subject.build(), self._dtype))
        if (kernel := subject.kernel) is not None:
            known = {"flops": kernel.flops, "bytes": kernel.bytes}
            work = replace(work, **{axis: value for axis, value in known.items() if value is not None})
        widened, inputs = cast(*subject.build(), torch.float64)
        torch.set_default_dtype(torch.float64)  # of what the model itself creates
        results = tensors(widened(*inputs))
        torch.set_default_dtype(torch.float32)
        torch.save(results, path)
        return work


class Limits:
    """The peak of multiply-adds and the read bandwidth, of that many threads."""

    def __init__(self, threads: int) -> None:
        self._probe, self._threads = Probe(Target.host()), threads

    def speed(self) -> Speed:
        return self._probe.speed(self._threads, _PROBES)


def relative_error(results: list[Tensor], reference: list[Tensor]) -> float:
    """``||y - r|| / ||r||`` of the worst output; infinite where NaN, shape or number of outputs differ."""
    if [r.shape for r in results] != [r.shape for r in reference]:
        return math.inf
    worst = 0.0
    for ours, exact in zip(results, reference, strict=True):
        distance, scale = float((ours.double() - exact.double()).norm()), float(exact.double().norm())
        if not math.isfinite(distance):
            return math.inf
        worst = max(worst, distance / scale if scale else distance)
    return worst
