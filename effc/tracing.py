"""Option ``trace``: a model's own runs add the times of its kernels to a folder of traces (`costmodel.traces`).

For each region and each set of sizes, some calls run kernel by kernel and are timed: enough for as many samples as a collection takes.
Then the folder gets a file, and the region runs as ever. What the system interrupted is no sample. Nothing that goes wrong with the
folder later stops the model: there is one warning, and no more traces.
"""

from __future__ import annotations

import atexit
import json
import os
import resource
import statistics
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import torch

from effc.compiler.build import Built, digest
from effc.compiler.ir.equality import computation
from effc.compiler.ir.errors import ArtifactError, OptionError
from effc.compiler.ir.options import Options
from effc.compiler.ir.program import Program
from effc.costmodel.hardware import Hardware
from effc.costmodel.parquet import arrow
from effc.costmodel.traces import Part, Trace, write
from effc.runtime.cache import Cache
from effc.runtime.executable import Executable
from effc.runtime.stepwise import Step
from effc.runtime.threads import threads
from effc.speed import host_hardware

#: Calls of a region before those that are timed; samples of each of its kernels; how many of them at least, when the process ends; and
#: after how many timed calls a region is given up, where the machine is not quiet.
_WARM, _SAMPLES, _FEWEST, _CALLS = 2, 9, 5, 27
#: Sets of sizes of one region that are timed.
_SHAPES = 8

Make = Callable[[str], Built]
#: A kernel's number in its program, and the values of its symbols.
_Key = tuple[int, tuple[int, ...]]


def traced(make: Make, options: Options) -> Make:
    """``make``, with executables that write traces to ``options.trace``. OptionError: that folder cannot be written to, or pyarrow is
    missing.
    """
    assert options.trace is not None, "only where the option is given"
    arrow()
    folder = _usable(Path(options.trace))
    hardware = host_hardware(Cache(options.cache_dir))
    chosen = options.plan.schedules() if options.plan is not None else {}

    def trace(text: str) -> Built:
        built = make(text)
        recorder = _Recorder(folder, hardware, built.executable.program, digest(text)[:12], frozenset(chosen))
        return replace(built, executable=cast(Executable, _Traced(built.executable, recorder)))

    return trace


def _usable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(
            f"option 'trace': the folder {folder} cannot be made ({error.strerror}); give another"
        ) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OptionError(f"option 'trace': the folder {folder} is not writable; give another, or its permissions")
    return folder


class _Traced:
    """An executable of which some calls are timed; all else is the executable's."""

    def __init__(self, executable: Executable, recorder: _Recorder) -> None:
        self._executable, self._recorder = executable, recorder

    def __call__(
        self, symbols: Sequence[int], tensors: Sequence[torch.Tensor], *, validate: bool = False
    ) -> Sequence[torch.Tensor]:
        samples = self._recorder.begin(tuple(symbols))
        if samples is None:
            return self._executable(symbols, tensors, validate=validate)
        try:
            return self._executable.run_stepwise(symbols, tensors, samples, validate=validate)
        finally:
            self._recorder.end(samples)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._executable, name)


@dataclass
class _Samples:
    """Of a region with one set of sizes on so many threads: seconds of the calls of each kernel. ``contaminated``: of each, those that the
    system interrupted. The observer of a stepwise run.
    """

    threads: int
    seconds: dict[_Key, list[float]] = field(default_factory=dict)
    contaminated: Counter[_Key] = field(default_factory=Counter)
    calls: int = 0
    written: bool = False
    _taken: int = 0
    _started: float = 0.0

    def before(self, step: Step) -> None:
        self._taken = _preempted()
        self._started = time.perf_counter()

    def after(self, step: Step) -> None:
        spent = time.perf_counter() - self._started
        key = (step.call.kernel, step.symbols)
        kept = self.seconds.setdefault(key, [])
        if _preempted() == self._taken:
            kept.append(spent)
        else:
            self.contaminated[key] += 1

    @property
    def enough(self) -> bool:
        return self.calls > 0 and all(len(kept) >= _SAMPLES for kept in self.seconds.values())


class _Recorder:
    """Decides which calls of a region are timed, one at a time, and writes what they gave."""

    def __init__(
        self, folder: Path, hardware: Hardware, program: Program, region: str, planned: frozenset[str]
    ) -> None:
        self._folder, self._hardware, self._program = folder, hardware, program
        self._region, self._planned = region, planned
        self._seen: Counter[tuple[tuple[int, ...], int]] = Counter()
        self._samples: dict[tuple[tuple[int, ...], int], _Samples] = {}
        self._lock = threading.Lock()
        self._broken = False
        atexit.register(self.close)

    def begin(self, symbols: tuple[int, ...]) -> _Samples | None:
        """What takes the times of this call; None where it is not timed. Then `end` must follow."""
        if not self._lock.acquire(blocking=False):  # another thread's call is being timed
            return None
        samples = None if self._broken else self._open((symbols, threads().count()))
        if samples is None:
            self._lock.release()
        return samples

    def end(self, samples: _Samples) -> None:
        """After the call."""
        try:
            samples.calls += 1
            if samples.enough or samples.calls >= _CALLS:
                self._write(samples)
        finally:
            self._lock.release()

    def close(self) -> None:
        """Write what is left when the process ends."""
        with self._lock:
            for samples in self._samples.values():
                self._write(samples)

    def _open(self, key: tuple[tuple[int, ...], int]) -> _Samples | None:
        samples = self._samples.get(key)
        if samples is not None:
            return None if samples.written else samples
        self._seen[key] += 1
        if self._seen[key] <= _WARM or len(self._samples) >= _SHAPES:
            return None
        return self._samples.setdefault(key, _Samples(key[1]))

    def _write(self, samples: _Samples) -> None:
        if samples.written or self._broken:
            return
        samples.written = True
        when = datetime.now(UTC)
        family = f"model:{_file(self._program) or self._region}"
        traces = tuple(
            self._trace(key, samples, family, when) for key, kept in samples.seconds.items() if len(kept) >= _FEWEST
        )
        if not traces:
            return
        try:
            write(self._folder, Part(self._hardware, traces))
        except (ArtifactError, OSError) as error:
            self._broken = True
            warnings.warn(f"option 'trace': {error}; this region adds no more traces", RuntimeWarning, stacklevel=2)

    def _trace(self, key: _Key, samples: _Samples, family: str, when: datetime) -> Trace:
        (kernel, symbols), kept = key, samples.seconds[key]
        spec = self._program.kernels[kernel]
        low, median, high = statistics.quantiles(kept, n=4, method="inclusive")
        name = next(call.name for call in self._program.calls if call.kernel == kernel)
        return Trace(
            computation=computation(spec),
            family=family,
            subject=self._region,
            op=name or spec.template,
            spec=json.dumps(spec.to_json()),
            own_choice=spec.key() not in self._planned,
            symbols=symbols,
            threads=samples.threads,
            median=median,
            low=low,
            high=high,
            least=min(kept),
            rounds=len(kept),
            contaminated=samples.contaminated[key],
            calls=1,
            when=when,
        )


def _file(program: Program) -> str:
    """The file of most of the kernels, without its ending: ``resnet``."""
    files = Counter(call.location.partition(".py:")[0] for call in program.calls if ".py:" in call.location)
    return files.most_common(1)[0][0] if files else ""


def _preempted() -> int:
    """How often the system has taken a core from this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
