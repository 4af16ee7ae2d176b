"""Traces: measured times of kernels, in Parquet files that anyone can collect on his machine and train on.

A file holds the records of one machine, whose description lies in its metadata; docs/cost_model.md has the schema.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from effc.compiler.ir.errors import ArtifactError
from effc.compiler.ir.spec import KernelSpec
from effc.costmodel.hardware import Hardware
from effc.costmodel.parquet import NO_MACHINE, NO_SPEC, Form, arrow, without_faults

#: Times of one call that can be: beyond these a record is skipped.
SHORTEST, LONGEST = 1e-9, 1e3

_HARDWARE_KEY, _FINISHED_KEY = "effc.hardware", "effc.finished"


@dataclass(frozen=True)
class Code:
    """Of a kernel's machine code: instructions, bytes, vector stores to and loads from the stack that spill registers, and the share of
    instructions that use vector registers.
    """

    instructions: int
    code_bytes: int
    spills: int
    reloads: int
    vector_share: float


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds of one call: ``median``, quartiles ``low`` and ``high``, and ``least``, over ``rounds`` windows of ``calls`` calls each.
    ``contaminated``: windows that were rejected, because the machine did something else.
    """

    median: float
    low: float
    high: float
    least: float
    rounds: int
    contaminated: int
    calls: int


@dataclass(frozen=True, kw_only=True)
class Trace(Timing):
    """One kernel under one schedule, measured.

    ``computation``: `equality.computation` of the spec; ``family``: kind of shapes, or model, that can be held out; ``subject``: what
    was compiled; ``op``: what the kernel computes, readable; ``spec``: JSON of `KernelSpec`, with its schedule; ``own_choice``: whether
    that is the template's own.
    """

    computation: str
    family: str
    subject: str
    op: str
    spec: str
    own_choice: bool
    symbols: tuple[int, ...]
    threads: int
    when: datetime
    code: Code | None = None

    @cached_property
    def kernel(self) -> KernelSpec:
        """One of `NO_SPEC` where the text is none."""
        return KernelSpec.from_json(json.loads(self.spec))

    @cached_property
    def schedule(self) -> str:
        """That of the spec, as text that equal ones share; one of `NO_SPEC` where the text is none."""
        return self._read[0]

    @cached_property
    def _read(self) -> tuple[str, int]:
        """Of the spec: its schedule, and how many symbols it has."""
        spec = json.loads(self.spec)
        return schedule_text(spec), len(spec["symbols"])

    @property
    def spread(self) -> float:
        """The range between the quartiles, as a share of the median."""
        return (self.high - self.low) / self.median

    def fault(self) -> str:
        """Why this cannot be a measurement, or ``""``."""
        times = (self.least, self.low, self.median, self.high)
        if not all(math.isfinite(t) and SHORTEST <= t <= LONGEST for t in times):
            return "an absurd time"
        if list(times) != sorted(times):
            return "quartiles out of order"
        if min(self.rounds, self.calls, self.threads) < 1 or self.contaminated < 0:
            return "a count below 1"
        try:
            count = self._read[1]
        except NO_SPEC:
            return "no spec"
        sizes = len(self.symbols) == count and all(value is not None and value >= 0 for value in self.symbols)
        return "" if sizes else "no sizes for its spec"


@dataclass(frozen=True)
class Part:
    """A file's content. ``finished``: subjects of which nothing is left to measure; ``skipped``: records by what is wrong with them."""

    hardware: Hardware
    traces: tuple[Trace, ...]
    finished: tuple[str, ...] = ()
    skipped: Counter[str] = field(default_factory=Counter)


def write(folder: Path, part: Part) -> Path:
    """A new file in ``folder``, under a name of its own. ArtifactError: it cannot be written."""
    told = {_HARDWARE_KEY: part.hardware.to_json(), _FINISHED_KEY: list(part.finished)}
    return FORM.write(folder, [_record(trace) for trace in part.traces], told)


def read(path: Path) -> Part:
    """The content of a file. ArtifactError: it is cut short or damaged, no trace file, or of another version."""
    records, metadata = FORM.read(path)
    try:
        hardware = Hardware.from_json(json.loads(metadata[_HARDWARE_KEY]))
        finished = tuple(map(str, json.loads(metadata[_FINISHED_KEY])))
    except NO_MACHINE as error:
        raise ArtifactError(f"{path} has no description of the hardware that can be read: {error}") from error
    kept, skipped = without_faults(map(_trace, records))
    return Part(hardware, kept, finished, skipped)


def schedule_text(spec: Mapping[str, Any]) -> str:
    """Of a spec in JSON's form."""
    return json.dumps(spec["schedule"], sort_keys=True)


def schema() -> Any:
    """The columns as pyarrow has them, without metadata."""
    pa, _ = arrow()
    texts = ("computation", "family", "subject", "op", "spec")
    return pa.schema([
        *(pa.field(name, pa.string(), nullable=False) for name in texts),
        pa.field("own_choice", pa.bool_(), nullable=False),
        pa.field("symbols", pa.list_(pa.int64()), nullable=False),
        pa.field("threads", pa.int32(), nullable=False),
        *(pa.field(name, pa.float64(), nullable=False) for name in ("median", "low", "high", "least")),
        *(pa.field(name, pa.int32(), nullable=False) for name in ("rounds", "contaminated", "calls")),
        pa.field("when", pa.timestamp("us", tz="UTC"), nullable=False),
        *(pa.field(name, pa.int64()) for name in ("instructions", "code_bytes", "spills", "reloads")),
        pa.field("vector_share", pa.float64()),
    ])  # fmt: skip


FORM = Form("effc.traces", 1, schema)


def _record(trace: Trace) -> Mapping[str, Any]:
    code = {f.name: getattr(trace.code, f.name, None) for f in fields(Code)}
    return {**{f.name: getattr(trace, f.name) for f in fields(trace)}, **code, "symbols": list(trace.symbols)}


def _trace(line: dict[str, Any]) -> Trace:
    code = {f.name: line.pop(f.name) for f in fields(Code)}
    known = None if any(value is None for value in code.values()) else Code(**code)
    return Trace(**{**line, "symbols": tuple(line["symbols"])}, code=known)
