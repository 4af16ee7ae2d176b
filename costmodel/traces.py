"""Traces: measured times of kernels, in Parquet files that anyone can collect on his machine and train on.

A file holds the records of one machine, whose description lies in its metadata; docs/cost_model.md has the schema. Files are written
whole, to a temporary name that is then replaced: a collection that is killed leaves no half file. Needs the extra ``costmodel``
(pyarrow).
"""

from __future__ import annotations

import json
import math
import os
import secrets
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from effc.compiler.ir.errors import ArtifactError, OptionError
from effc.compiler.ir.spec import KernelSpec
from effc.costmodel.hardware import Hardware

#: Of the schema; changes with every column.
VERSION = 1
SUFFIX = ".parquet"
#: Times of one call that can be: beyond these a record is skipped.
SHORTEST, LONGEST = 1e-9, 1e3

_VERSION_KEY, _HARDWARE_KEY, _FINISHED_KEY = b"effc.traces", b"effc.hardware", b"effc.finished"


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
        """KeyError, TypeError or ValueError where the text is no spec."""
        return KernelSpec.from_json(json.loads(self.spec))

    @cached_property
    def schedule(self) -> str:
        """That of the spec, as text that equal ones share."""
        return schedule_text(json.loads(self.spec))

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
            return "" if self.schedule else "no spec"
        except (KeyError, TypeError, ValueError):
            return "no spec"


@dataclass(frozen=True)
class Part:
    """A file's content. ``finished``: subjects of which nothing is left to measure; ``skipped``: records by what is wrong with them."""

    hardware: Hardware
    traces: tuple[Trace, ...]
    finished: tuple[str, ...] = ()
    skipped: Counter[str] = field(default_factory=Counter)


def write(folder: Path, part: Part) -> Path:
    """A new file in ``folder``, under a name of its own. ArtifactError: it cannot be written."""
    pa, pq = _arrow()
    columns = {name: [_cell(trace, name) for trace in part.traces] for name in _names()}
    metadata = {
        _VERSION_KEY: str(VERSION).encode(),
        _HARDWARE_KEY: json.dumps(part.hardware.to_json()).encode(),
        _FINISHED_KEY: json.dumps(list(part.finished)).encode(),
    }
    table = pa.table(columns, schema=schema().with_metadata(metadata))
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"
    path, temporary = folder / f"{name}{SUFFIX}", folder / f".{name}.tmp"
    try:
        pq.write_table(table, temporary, compression="zstd")
        os.replace(temporary, path)
    except OSError as error:
        raise ArtifactError(f"{len(part.traces)} records could not be written to {folder}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def read(path: Path) -> Part:
    """The content of a file. ArtifactError: it is cut short or damaged, no trace file, or of another version."""
    pa, pq = _arrow()
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise ArtifactError(
            f"{path} cannot be read as traces ({_first_line(error)}): it is cut short, damaged or no Parquet file. Move it away; "
            f"every other file of its folder is whole by itself"
        ) from error
    metadata: Mapping[bytes, bytes] = table.schema.metadata or {}
    version = metadata.get(_VERSION_KEY, b"").decode(errors="replace")
    if not version:
        raise ArtifactError(f"{path} holds no traces of effc: its metadata has no '{_VERSION_KEY.decode()}'")
    if version != str(VERSION) or not table.schema.equals(schema(), check_metadata=False):
        raise ArtifactError(
            f"{path} has version {version} of the traces' schema, and this effc reads version {VERSION}: read it with the effc that wrote "
            f"it, or collect again"
        )
    try:
        hardware = Hardware.from_json(json.loads(metadata[_HARDWARE_KEY]))
        finished = tuple(map(str, json.loads(metadata[_FINISHED_KEY])))
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path} has no description of the hardware that can be read: {error}") from error
    kept, skipped = [], Counter[str]()
    for line in table.to_pylist():
        trace = _trace(line)
        fault = trace.fault()
        if fault:
            skipped[fault] += 1
        else:
            kept.append(trace)
    return Part(hardware, tuple(kept), finished, skipped)


def schedule_text(spec: Mapping[str, Any]) -> str:
    """Of a spec in JSON's form."""
    return json.dumps(spec["schedule"], sort_keys=True)


def files(places: Iterable[Path]) -> list[Path]:
    """The trace files among ``places`` and in the folders among them; OptionError where one is not there or holds none."""
    found: list[Path] = []
    for place in places:
        inside = sorted(place.glob(f"*{SUFFIX}")) if place.is_dir() else [place]
        if not inside or not all(path.is_file() for path in inside):
            raise OptionError(f"there are no traces in {place}: give a {SUFFIX} file, or a folder of them")
        found += inside
    return found


def schema() -> Any:
    """The columns as pyarrow has them, without metadata."""
    pa, _ = _arrow()
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


def _names() -> Sequence[str]:
    return [*(f.name for f in fields(Trace) if f.name != "code"), *(f.name for f in fields(Code))]


def _cell(trace: Trace, name: str) -> Any:
    if name in Trace.__dataclass_fields__:
        value = getattr(trace, name)
        return list(value) if isinstance(value, tuple) else value
    return None if trace.code is None else getattr(trace.code, name)


def _trace(line: dict[str, Any]) -> Trace:
    code = {f.name: line.pop(f.name) for f in fields(Code)}
    known = None if any(value is None for value in code.values()) else Code(**code)
    return Trace(**{**line, "symbols": tuple(line["symbols"])}, code=known)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(". ")


def require_arrow() -> None:
    """OptionError: pyarrow is not installed."""
    _arrow()


def _arrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise OptionError("traces need pyarrow: pip install 'effc[costmodel]'") from None
    return pyarrow, pyarrow.parquet
