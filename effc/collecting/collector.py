"""Collecting: subject by subject, every kernel under a sample of its schedules, into part files that are kept whatever happens next."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from effc.collecting.found import Found
from effc.collecting.held import held
from effc.collecting.shapes import Subject
from effc.collecting.sink import Sink
from effc.collecting.windows import TooNoisy
from effc.compiler.ir.errors import EffcError
from effc.compiler.ir.spec import KernelSpec
from effc.costmodel.hardware import Hardware
from effc.costmodel.traces import Part, Trace, read, schedule_text, write

_NOISE = "too few clean windows"


@dataclass(frozen=True)
class Request:
    """What to collect. ``threads``: each kernel is measured with each of these; ``schedules``: at most, of one kernel, the template's own
    among them; ``seconds``: no subject is begun after these.
    """

    folder: Path
    threads: tuple[int, ...]
    schedules: int
    seed: int
    seconds: float = float("inf")
    cache_dir: str | None = None


@dataclass
class Outcome:
    """What happened. ``reached``: subjects, with those that an earlier collection has finished; ``subjects``: those compiled now;
    ``known``: records that were there already; ``lost``: by reason, what could not be measured; ``unreadable``: files that an earlier
    collection left.
    """

    reached: int = 0
    subjects: int = 0
    records: int = 0
    known: int = 0
    windows: int = 0
    contaminated: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)


class Bench(Protocol):
    """Compiles and measures on a machine; another one stands in for it in tests."""

    hardware: Hardware

    def kernels(self, subject: Subject) -> list[Found]: ...

    def traces(
        self, subject: Subject, found: Found, chosen: Sequence[KernelSpec], threads: int
    ) -> list[Trace | TooNoisy]: ...

    def alternatives(self, spec: KernelSpec) -> list[KernelSpec]: ...


def collect(
    subjects: Iterable[Subject],
    request: Request,
    bench: Bench,
    watch: Callable[[str, Outcome], None] = lambda text, outcome: None,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Measure what the files of ``request.folder`` do not hold yet. ``watch(text, outcome)`` is told what begins. An interruption loses
    at most the kernel in progress.
    """
    outcome = Outcome()
    finished, known = _held(request.folder, bench.hardware, outcome)
    sink = Sink[Trace](lambda traces, done: write(request.folder, Part(bench.hardware, traces, done)), clock)
    stop = clock() + request.seconds
    with sink:
        for subject in subjects:
            if clock() >= stop:
                break
            name = finished_name(subject.name, request)
            outcome.reached += 1
            if name in finished:
                continue
            watch(subject.name, outcome)
            whole = _measure(subject, request, bench, known, sink, outcome, lambda: clock() >= stop)
            if whole:
                sink.finished.append(name)
            outcome.subjects += 1
    return outcome


def finished_name(subject: str, request: Request) -> str:
    """By which a subject is noted as finished: with other threads, more schedules or another seed there is more to measure."""
    return f"{subject} {','.join(map(str, request.threads))}x{request.schedules} seed {request.seed}"


def _measure(
    subject: Subject,
    request: Request,
    bench: Bench,
    known: set[str],
    sink: Sink[Trace],
    outcome: Outcome,
    late: Callable[[], bool],
) -> bool:
    """One subject's kernels; whether nothing is left to measure."""
    whole = True
    try:
        found = bench.kernels(subject)
    except Exception as error:  # also what a user's model raises: the other subjects are measured all the same
        outcome.lost[f"{subject.name}: {type(error).__name__}: {_line(error)}"] += 1
        return False
    for kernel in found:
        draw = random.Random(f"{request.seed} {kernel.computation}")
        chosen = sampled(bench.alternatives(kernel.spec), request.schedules, draw)
        for threads in request.threads:
            new = [spec for spec in chosen if _key(kernel, spec, threads) not in known]
            outcome.known += len(chosen) - len(new)
            if not new:
                continue
            if late():
                return False
            known.update(_key(kernel, spec, threads) for spec in new)
            try:
                traces = bench.traces(subject, kernel, new, threads)
            except (EffcError, IndexError) as error:
                outcome.lost[f"{type(error).__name__}: {_line(error)}"] += len(new)
                continue
            for trace in traces:
                outcome.contaminated += trace.contaminated
                if isinstance(trace, TooNoisy):
                    outcome.windows += trace.kept + trace.contaminated
                    outcome.lost[_NOISE] += 1
                    whole = False
                    continue
                outcome.windows += trace.rounds + trace.contaminated
                outcome.records += 1
                sink.add(trace)
    return whole


def sampled(alternatives: Sequence[KernelSpec], most: int, draw: random.Random) -> list[KernelSpec]:
    """The first, which is the template's own choice, and others at random, in their order."""
    rest = range(1, len(alternatives))
    return [alternatives[0], *(alternatives[i] for i in sorted(draw.sample(rest, min(most - 1, len(rest)))))]


def _key(kernel: Found, spec: KernelSpec, threads: int) -> str:
    return f"{kernel.computation} {schedule_text(spec.to_json())} {kernel.symbols} {threads}"


def _held(folder: Path, hardware: Hardware, outcome: Outcome) -> tuple[set[str], set[str]]:
    """Subjects that are finished, and keys of what is measured, on this kind of machine."""
    finished: set[str] = set()
    known: set[str] = set()
    for part in held(folder, read, outcome.unreadable):
        if part.hardware.digest() == hardware.digest():
            finished.update(part.finished)
            known.update(f"{t.computation} {t.schedule} {t.symbols} {t.threads}" for t in part.traces)
    return finished, known


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0][:120]
