"""Records of GPU kernels: what triton made of each under one schedule, and how long it took where there is a GPU."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from effc.compiler.ir.errors import ArtifactError
from effc.compiler.ir.spec import KernelSpec
from effc.costmodel.gpu.features import TILING
from effc.costmodel.gpu.machine import Gpu
from effc.costmodel.parquet import NO_MACHINE, NO_SPEC, Form, arrow, without_faults

KEY = "effc.gpu_traces"
_GPU_KEY, _FINISHED_KEY = "effc.gpu", "effc.finished"
#: Registers that a thread can have.
_MOST_REGISTERS = 255


@dataclass(frozen=True)
class Facts:
    """Of the main launch's code. ``registers`` of a thread; ``frame``: bytes of it on the stack, spilled registers; ``shared``: bytes of a
    block; ``warps`` of a block; ``resident``: blocks that a processor holds at once; ``instructions`` of its PTX.
    """

    registers: int
    frame: int
    shared: int
    warps: int
    resident: int
    instructions: int

    def possible(self) -> bool:
        """Whether any code can be so."""
        least = min(self.frame, self.shared, self.resident, self.warps - 1, self.instructions - 1)
        return least >= 0 and 0 < self.registers <= _MOST_REGISTERS


@dataclass(frozen=True, kw_only=True)
class GpuTrace:
    """One kernel under one schedule. ``computation``, ``family``, ``subject``, ``op``, ``spec``, ``own_choice``: as of a CPU's record
    (`costmodel.traces`). ``facts``: None where triton, or the GPU's limits, refused the code, and ``refusal`` says why; ``median``: seconds
    on the GPU, None where there is none.
    """

    computation: str
    family: str
    subject: str
    op: str
    spec: str
    own_choice: bool
    refusal: str = ""
    facts: Facts | None = None
    median: float | None = None

    @cached_property
    def kernel(self) -> KernelSpec:
        """One of `NO_SPEC` where the text is none."""
        return KernelSpec.from_json(json.loads(self.spec))

    def fault(self) -> str:
        """Why this cannot be a record, or ``""``."""
        if (self.facts is None) != bool(self.refusal):
            return "neither facts nor a refusal"
        if self.facts is not None and not self.facts.possible():
            return "absurd facts"
        if self.median is not None and not (0 < self.median < math.inf):
            return "an absurd time"
        try:
            spec = self.kernel
            tiling = dict(spec.schedule.parameters)
            whole = all(isinstance(tiling.get(name), int) for name in TILING)
        except NO_SPEC:
            return "no spec"
        if spec.template != "contraction" or spec.symbols or not any(instr.op == "contract" for instr in spec.body):
            return "no product of known sizes"
        return "" if whole else "no whole tiling"


@dataclass(frozen=True)
class GpuPart:
    """A file's content, as `costmodel.traces.Part`."""

    gpu: Gpu
    traces: tuple[GpuTrace, ...]
    finished: tuple[str, ...] = ()
    skipped: Counter[str] = field(default_factory=Counter)


def write(folder: Path, part: GpuPart) -> Path:
    """A new file in ``folder``. ArtifactError: it cannot be written."""
    return FORM.write(
        folder,
        [_record(trace) for trace in part.traces],
        {_GPU_KEY: part.gpu.to_json(), _FINISHED_KEY: list(part.finished)},
    )


def read(path: Path) -> GpuPart:
    """The content of a file. ArtifactError: it is damaged, of another version or without such records."""
    records, metadata = FORM.read(path)
    try:
        gpu = Gpu.from_json(json.loads(metadata[_GPU_KEY]))
        finished = tuple(map(str, json.loads(metadata[_FINISHED_KEY])))
    except NO_MACHINE as error:
        raise ArtifactError(f"{path} has no description of the GPU that can be read: {error}") from error
    kept, skipped = without_faults(map(_trace, records))
    return GpuPart(gpu, kept, finished, skipped)


def schema() -> Any:
    """The columns as pyarrow has them, without metadata."""
    pa, _ = arrow()
    return pa.schema([
        *(pa.field(name, pa.string(), nullable=False) for name in ("computation", "family", "subject", "op", "spec")),
        pa.field("own_choice", pa.bool_(), nullable=False),
        pa.field("refusal", pa.string(), nullable=False),
        pa.field("median", pa.float64()),
        *(pa.field(f.name, pa.int32()) for f in fields(Facts)),
    ])  # fmt: skip


FORM = Form(KEY, 1, schema)


def _record(trace: GpuTrace) -> Mapping[str, Any]:
    facts = asdict(trace.facts) if trace.facts is not None else dict.fromkeys(f.name for f in fields(Facts))
    return {**{f.name: getattr(trace, f.name) for f in fields(trace)}, **facts}


def _trace(record: dict[str, Any]) -> GpuTrace:
    facts = {f.name: record.pop(f.name) for f in fields(Facts)}
    known = None if any(value is None for value in facts.values()) else Facts(**facts)
    return GpuTrace(**record, facts=known)
