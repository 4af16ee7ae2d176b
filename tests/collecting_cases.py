"""A bench of invented times, and what a collection by it has left behind."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from trace_cases import MACHINE, TRACE

from effc.collecting.collector import Request
from effc.collecting.found import Found
from effc.collecting.shapes import Subject
from effc.collecting.windows import TooNoisy
from effc.compiler.ir.errors import LoweringError
from effc.compiler.ir.spec import KernelSpec
from effc.costmodel.hardware import Hardware
from effc.costmodel.parquet import files
from effc.costmodel.traces import Trace, read


class FakeBench:
    """Kernels of two computations a subject, under three schedules each."""

    def __init__(self, stop_after: int = 10**9, hardware: Hardware = MACHINE) -> None:
        self.hardware, self.measured, self._left = hardware, list[tuple[str, str, int]](), stop_after

    def kernels(self, subject: Subject) -> list[Found]:
        if subject.name == "broken":
            raise LoweringError("this subject does not compile\nat all")
        spec = KernelSpec.from_json(json.loads(TRACE.spec))
        return [Found(f"{subject.name} {i}", "f", spec, (7,), {}) for i in range(2)]

    def alternatives(self, spec: KernelSpec) -> list[KernelSpec]:
        return [spec, *(spec.with_schedule(mr=mr) for mr in (1, 2))]

    def traces(
        self, subject: Subject, found: Found, chosen: Sequence[KernelSpec], threads: int
    ) -> list[Trace | TooNoisy]:
        if not self._left:
            raise KeyboardInterrupt
        self._left -= 1
        self.measured += [(found.computation, str(s.schedule.parameters), threads) for s in chosen]
        if "noisy" in subject.name:
            return [TooNoisy(2, 20)] * len(chosen)
        common = replace(
            TRACE, computation=found.computation, symbols=found.symbols, threads=threads, when=datetime.now(UTC)
        )
        own = found.spec.schedule
        return [replace(common, spec=json.dumps(s.to_json()), own_choice=s.schedule == own) for s in chosen]


def subjects(*names: str) -> Iterator[Subject]:
    return (Subject(name, "linear", lambda: (torch.nn.ReLU(), ())) for name in names)


def request_of(folder: Path, **changes: object) -> Request:
    return replace(Request(folder, (1, 2), 8, 0), **changes)  # type: ignore[arg-type]


def held(folder: Path) -> list[Trace]:
    return [trace for path in files([folder]) for trace in read(path).traces]
