"""This machine as a bench: compiles subjects, lays out memory for their kernels, and times schedules against each other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime

import torch

from effc.collecting import code_facts, windows
from effc.collecting.collector import Request
from effc.collecting.found import Found, kernels
from effc.collecting.native import Cursor, Timed
from effc.collecting.operands import Store
from effc.collecting.reference import reference
from effc.collecting.shapes import Subject
from effc.collecting.windows import TooNoisy
from effc.compiler.build import objects
from effc.compiler.codegen.cpu import schedules
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.errors import EffcError
from effc.compiler.ir.options import Options
from effc.compiler.ir.spec import KernelSpec
from effc.compiler.toolchain import toolchain
from effc.costmodel.traces import Code, Timing, Trace
from effc.runtime.cache import Cache
from effc.runtime.elf import load
from effc.speed import host_hardware


class HostBench:
    """This machine. Measures by `windows.measure`, one kernel's schedules against each other."""

    def __init__(self, request: Request, plan: windows.Plan = windows.USUAL) -> None:
        code_facts.disassembler()  # what is missing is told now, not at the first kernel
        self._options = Options(cache_dir=request.cache_dir, fallback="eager")
        self._cache, self._target, self._plan = Cache(request.cache_dir), Target.host(), plan
        self.hardware = host_hardware(self._cache)
        self._store = Store(self.hardware, request.seed)
        self._references = {threads: reference(self._cache, threads) for threads in request.threads}

    def kernels(self, subject: Subject) -> list[Found]:
        torch._dynamo.reset()
        model, inputs = subject.make()
        return kernels(model, inputs, self._options)

    def alternatives(self, spec: KernelSpec) -> list[KernelSpec]:
        """Those whose weights can be laid out without the model: where zeros are left out, only the schedule that the model runs."""
        try:
            found = schedules.alternatives(spec, self._target)
        except EffcError:
            return [spec]
        return [spec, *(s for s in found if s.schedule != spec.schedule and not s.schedule.get("sparse"))]

    def traces(
        self, subject: Subject, found: Found, chosen: Sequence[KernelSpec], threads: int
    ) -> list[Trace | TooNoisy]:
        code, _ = objects({s.digest(): s for s in chosen}, self._target, self._cache, toolchain())
        seen, cursor = found.seen, Cursor()
        memory = self._store.activations(found.spec, found.symbols, seen)
        rivals = []
        for spec in chosen:
            known = seen if spec.schedule == found.spec.schedule else {}
            placed = {**{i: [t] for i, t in memory.items()}, **self._store.scheduled(spec, found.symbols, known)}
            operands = [placed[i] for i in range(len(spec.operands))]
            rivals.append(Timed(load(code[spec.digest()]), spec, operands, found.symbols, threads, cursor))
        timings = windows.measure([r.run for r in rivals], self._references[threads], self._plan)
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
