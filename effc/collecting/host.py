"""This machine as a bench: compiles subjects, and times the schedules of their kernels against each other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime

import torch

from effc.collecting import code_facts, windows
from effc.collecting.collector import Request
from effc.collecting.found import Found, kernels
from effc.collecting.shapes import Subject
from effc.collecting.timer import KernelTimer
from effc.collecting.windows import TooNoisy
from effc.compiler.ir.options import Options
from effc.compiler.ir.spec import KernelSpec
from effc.costmodel.traces import Code, Timing, Trace
from effc.runtime.cache import Cache
from effc.speed import host_hardware


class HostBench:
    """This machine."""

    def __init__(self, request: Request, plan: windows.Plan = windows.USUAL) -> None:
        code_facts.disassembler()  # what is missing is told now, not at the first kernel
        self._options = Options(cache_dir=request.cache_dir, fallback="eager")
        cache = Cache(request.cache_dir)
        self.hardware = host_hardware(cache)
        self._timer = KernelTimer(self.hardware, cache, request.seed, plan)

    def kernels(self, subject: Subject) -> list[Found]:
        torch._dynamo.reset()
        model, inputs = subject.make()
        return kernels(model, inputs, self._options.changed(passes=subject.passes))

    def alternatives(self, spec: KernelSpec) -> list[KernelSpec]:
        return self._timer.alternatives(spec)

    def traces(
        self, subject: Subject, found: Found, chosen: Sequence[KernelSpec], threads: int
    ) -> list[Trace | TooNoisy]:
        code = self._timer.code(chosen)
        timings = self._timer.timings(found, chosen, threads)
        when = datetime.now(UTC)
        return [
            timing
            if isinstance(timing, TooNoisy)
            else _trace(subject, found, spec, threads, timing, code_facts.facts(code[spec.digest()]), when)
            for spec, timing in zip(chosen, timings, strict=True)
        ]


def _trace(
    subject: Subject, found: Found, spec: KernelSpec, threads: int, timing: Timing, code: Code, when: datetime
) -> Trace:
    return Trace(
        computation=found.computation,
        family=subject.family,
        subject=subject.name,
        op=found.op,
        spec=json.dumps(spec.to_json()),
        own_choice=spec.schedule == found.spec.schedule,
        symbols=found.symbols,
        threads=threads,
        **asdict(timing),
        when=when,
        code=code,
    )
