"""Measuring: every system in a process of its own, all of them timed in turn, with the machine's limits, in each round."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from effc.bench.places import CudaLimits
from effc.bench.remote import Remote, RemoteError
from effc.bench.result import Measurement, Outcome
from effc.bench.runner import Limits, Prepared, Reference, Runner, Subject
from effc.bench.spread import Spread
from effc.bench.systems import DTYPES, SYSTEMS, Setting
from effc.bench.work import Work
from effc.compiler.codegen.cpu.target import Target
from effc.costmodel.hardware import Speed, describe

#: Seconds of calls that one sample is the mean of, and of calls before it: after a rest, those of the first 50 to 100 ms are up to
#: 1.6 times as long, in every system that divides its work over cores.
_ROUND = 0.1
#: Seconds of rest before each sample. ONNX Runtime's threads go on spinning for up to 0.1 s after a call, and took up to three
#: quarters of the speed from who came next; OpenMP's sleep after some milliseconds.
_REST = 0.02
_REST_FROM_SPINNING = 0.25
#: Seconds for everything but the first call of a system.
_PATIENCE = 300.0
#: Values in the bytes of one float32. In int8, inputs, outputs and what is not quantized are wider: the floor is the lower for it.
_NARROWER = {"int8": 4}
#: Multiply-adds of the instructions that a CPU may have, over those of float32's, which the probe measures.
_RATES: dict[str, dict[str, float]] = {
    "float32": {},
    "bfloat16": {"amx_bf16": 16.0, "avx512_bf16": 2.0},
    "int8": {"amx_int8": 32.0, "avx512_vnni": 4.0, "avx_vnni": 4.0},
}


@dataclass(frozen=True)
class Plan:
    """``timeout``: seconds for a system's first call. ``fresh``: a new process for each subject, so that memory is the subject's own."""

    systems: tuple[str, ...]
    setting: Setting
    rounds: int
    timeout: float
    fresh: bool


@dataclass
class _Entrant:
    """A system that takes part, and what it has shown."""

    remote: Remote
    prepared: Prepared
    seconds: list[float] = field(default_factory=list)
    failure: str = ""


class Session:
    """The processes of a measurement; a context manager that ends them. ``watch(text)`` hears of every step."""

    def __init__(self, plan: Plan, watch: Callable[[str], None]) -> None:
        self._plan, self._watch = plan, watch
        self._target = Target.host()
        on_cpu = plan.setting.device == "cpu"  # a GPU's L2 is left out of account
        self._cache = describe(self._target.key, self._target.vector_bytes, lambda: None).l3 if on_cpu else 0
        self._open: dict[str, Remote] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Session:
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="effc-bench-")))
        threads = self._plan.setting.threads
        self._reference = self._start("reference", partial(Reference, self._plan.setting))
        cuda = partial(CudaLimits, DTYPES[self._plan.setting.dtype])
        on_cpu = self._plan.setting.device == "cpu"
        self._limits = self._start("limits", partial(Limits, threads) if on_cpu else cuda)
        return self

    def __exit__(self, *exception: object) -> None:
        for remote in (*self._open.values(), self._reference, self._limits):
            remote.close()
        self._stack.close()

    def measure(self, subject: Subject) -> Measurement:
        """All systems on ``subject``."""
        self._watch(f"{subject.name}: float64")
        results = self._folder / "reference.pt"
        work: Work = self._reference.call("prepare", subject, results, timeout=self._plan.timeout)
        outcomes: dict[str, Outcome] = {}
        entrants: dict[str, _Entrant] = {}
        for name in self._plan.systems:
            self._watch(f"{subject.name}: {name}, first call")
            reason = SYSTEMS[name].absent(self._plan.setting)
            if reason is not None:
                outcomes[name] = Outcome(name, "absent", reason)
                continue
            remote = self._open.get(name) or self._start(name, partial(Runner, name, self._plan.setting))
            self._open[name] = remote
            try:
                entrants[name] = _Entrant(remote, remote.call("prepare", subject, results, timeout=self._plan.timeout))
            except RemoteError as error:
                outcomes[name] = Outcome(name, "failed", str(error))
                self._end(name)
        speeds = self._rounds(subject, entrants)
        peak = Spread.of([s.flops * self._rate(subject) for s in speeds])
        bandwidth = Spread.of([s.bandwidth for s in speeds])
        floor = work.floor(peak.median, bandwidth.median, _NARROWER.get(self._plan.setting.dtype, 1))
        bound = work.bound(peak.median, bandwidth.median, self._cache)
        for name, entrant in entrants.items():
            outcomes[name] = self._outcome(name, entrant, floor)
        if self._plan.fresh:
            for name in entrants:
                self._end(name)
        ordered = tuple(outcomes[name] for name in self._plan.systems)
        return Measurement(subject.name, work.flops, work.bytes, peak, bandwidth, floor, bound, ordered)

    def _rounds(self, subject: Subject, entrants: dict[str, _Entrant]) -> list[Speed]:
        """Each round takes one sample of every entrant; who goes first changes from round to round."""
        speeds = []
        rest = _REST_FROM_SPINNING if "onnxruntime" in entrants else _REST
        for i in range(self._plan.rounds):
            self._watch(f"{subject.name}: round {i + 1} of {self._plan.rounds}")
            speeds.append(self._limits.call("speed", timeout=_PATIENCE))
            names = [n for n, e in entrants.items() if not e.failure]
            turn = i % max(1, len(names))
            for name in names[turn:] + names[:turn]:
                entrant = entrants[name]
                time.sleep(rest)
                try:
                    entrant.seconds.append(entrant.remote.call("seconds", _ROUND, timeout=_PATIENCE))
                except RemoteError as error:
                    entrant.failure = str(error)
        return speeds

    def _outcome(self, name: str, entrant: _Entrant, floor: float) -> Outcome:
        try:
            memory: int = entrant.remote.call("peak_memory", timeout=_PATIENCE) if not entrant.failure else 0
        except RemoteError as error:
            entrant.failure = str(error)
        if entrant.failure:
            self._end(name)
            return Outcome(name, "failed", entrant.failure)
        latency = Spread.of(entrant.seconds)
        return Outcome(
            system=name,
            status="ok",
            seconds=tuple(entrant.seconds),
            latency=latency,
            first_call=entrant.prepared.first_call,
            error=entrant.prepared.error,
            memory_first=entrant.prepared.peak_memory,
            memory=memory,
            share=floor / latency.median,
        )

    def _rate(self, subject: Subject) -> float:
        """The peak in the dtype of the subject's products over that of what the probe multiplies."""
        if self._plan.setting.device == "cuda":
            return 1.0
        kernel = subject.kernel
        rates = _RATES[(kernel and kernel.arithmetic) or self._plan.setting.dtype]
        return max((rate for feature, rate in rates.items() if self._target.has(feature)), default=1.0)

    def _start(self, name: str, make: Callable[[], object]) -> Remote:
        threads = str(self._plan.setting.threads)
        cache = tempfile.mkdtemp(dir=self._folder)  # empty: the first call is timed
        environment = {
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "EFFC_CACHE_DIR": f"{cache}/effc",
            "TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor",
        }
        return Remote(make, environment, self._folder / f"{name}.log")

    def _end(self, name: str) -> None:
        remote = self._open.pop(name, None)
        if remote is not None:
            remote.close()


def steps(plan: Plan, subjects: Sequence[Subject]) -> int:
    """How often ``watch`` will be called."""
    return len(subjects) * (1 + len(plan.systems) + plan.rounds)
