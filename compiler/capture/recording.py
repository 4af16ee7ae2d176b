"""Facts about compilations, gathered where they arise: the report and the tests read them.

    with record() as recording:
        compiled(x)
    recording.graphs[0].regions

A context variable holds the recording, so that compilations of other threads do not mix in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from effc.compiler.capture.source import Source
from effc.compiler.clock import adding
from effc.compiler.ir.plan import Plan
from effc.compiler.ir.program import Program

if TYPE_CHECKING:
    from effc.compiler.compress.compressor import Compressed


@dataclass(frozen=True)
class KernelFacts:
    """A kernel call of a compiled region; ``flops`` for the sizes seen at compile time."""

    name: str
    location: str
    template: str
    flops: int


@dataclass(frozen=True)
class Fallback:
    """An op that ATen runs, and why; ``flops`` by torch's own counter."""

    op: str
    source: Source
    reason: str
    flops: int


@dataclass
class RegionFacts:
    """A part of a graph that effc compiled; ``from_cache``: found on disk, nothing was compiled for it."""

    name: str
    ops: int
    flops: int
    kernels: list[KernelFacts]
    from_cache: bool


@dataclass
class GraphFacts:
    """One ATen graph: ``kind`` is ``inference``, ``forward`` or ``backward``; ``phases`` are seconds."""

    kind: str
    regions: list[RegionFacts] = field(default_factory=list)
    fallbacks: list[Fallback] = field(default_factory=list)
    phases: dict[str, float] = field(default_factory=dict)

    @property
    def ops_compiled(self) -> int:
        return sum(r.ops for r in self.regions)

    @property
    def flops_compiled(self) -> int:
        return sum(r.flops for r in self.regions)

    @property
    def flops_aten(self) -> int:
        return sum(f.flops for f in self.fallbacks)

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Adds the time spent inside to ``phases[name]``."""
        return adding(self.phases, name)


@dataclass
class Recording:
    """The graphs compiled while it was active, in order, and notes that concern the whole.

    ``programs``: of all regions in order, each with the values that its symbols had; ``plan``: what they were compiled by;
    ``compressed``: what was done to the weights of each graph where something was.
    """

    graphs: list[GraphFacts] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    programs: list[tuple[Program, Mapping[str, int]]] = field(default_factory=list)
    plan: Plan | None = None
    compressed: list[Compressed] = field(default_factory=list)


_current: ContextVar[Recording | None] = ContextVar("effc_recording", default=None)


@contextmanager
def record() -> Iterator[Recording]:
    """Gathers the facts of every compilation inside the block; the innermost block takes them."""
    recording = Recording()
    token = _current.set(recording)
    try:
        yield recording
    finally:
        _current.reset(token)


def active() -> Recording | None:
    """The recording of the enclosing ``record()``, if there is one."""
    return _current.get()
