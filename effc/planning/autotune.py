"""Schedules by measurement: the kernels of a plan under those that are predicted best, where predictions do not tell which is.

What is measured is kept in the cache, by what a kernel computes, its schedule, sizes and threads, the machine, and effc's sources: so the
same computation, in whichever model, is not measured again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Protocol

from effc.collecting.found import Found
from effc.collecting.windows import TooNoisy
from effc.compiler.build import digest, toolchain_key
from effc.compiler.ir.candidate import Latency
from effc.compiler.ir.spec import KernelSpec
from effc.costmodel.choices import Price
from effc.costmodel.hardware import Hardware
from effc.costmodel.traces import Timing, schedule_text
from effc.runtime.cache import Cache

#: Kernels that take less than this share of the time of all are left as they are.
_SHARE = 0.005


class Timer(Protocol):
    """`collecting.timer.KernelTimer`, or what stands in for it."""

    def alternatives(self, spec: KernelSpec) -> list[KernelSpec]: ...

    def timings(self, found: Found, chosen: Sequence[KernelSpec], threads: int) -> list[Timing | TooNoisy]: ...


@dataclass(frozen=True)
class Tuned:
    """A kernel as the plan had it, and under the schedule that was surely fastest. ``seconds``: of either; ``among``: so many measured."""

    before: KernelSpec
    after: KernelSpec
    seconds: tuple[float, float]
    among: int

    def __str__(self) -> str:
        gain = 100 * (self.seconds[0] / self.seconds[1] - 1)
        return f"of {self.among} schedules measured this one is {gain:.0f} % faster than the one that was predicted"


@dataclass
class Tuner:
    """``most``: schedules of one kernel that are measured at most, its own among them; on so many ``threads``. ``measured``, ``known``:
    schedules that were, and that the cache had; ``noisy``: kernels of which nothing could be told.
    """

    timer: Timer
    price: Price
    hardware: Hardware
    cache: Cache
    most: int
    threads: int
    measured: int = 0
    known: int = 0
    noisy: int = 0
    tuned: list[Tuned] = field(default_factory=list)

    def tune(self, kernels: Iterable[tuple[Found, float]]) -> None:
        """Each with its seconds in the model, all calls of it together."""
        found = list(kernels)
        whole = sum(seconds for _, seconds in found)
        for kernel, seconds in found:
            if seconds < _SHARE * whole:
                continue
            chosen = near(self.timer.alternatives(kernel.spec), partial(_priced, self.price, kernel.symbols), self.most)
            if len(chosen) > 1:
                self._compare(kernel, chosen)

    def _compare(self, kernel: Found, chosen: Sequence[KernelSpec]) -> None:
        timings = self._timings(kernel, chosen)
        own, others = timings[0], [(t, spec) for t, spec in zip(timings[1:], chosen[1:], strict=True) if t is not None]
        if own is None or not others:
            self.noisy += 1
            return
        best, spec = min(others, key=lambda found: found[0].median)
        if best.high < own.low:
            self.tuned.append(Tuned(kernel.spec, spec, (own.median, best.median), 1 + len(others)))

    def _timings(self, kernel: Found, chosen: Sequence[KernelSpec]) -> list[Timing | None]:
        """None of one for which the machine was not quiet enough. Measured anew together where one of them is not known."""
        keys = [self._key(kernel, spec) for spec in chosen]
        kept = [_timing(self.cache.get("timings", key)) for key in keys]
        if all(kept):
            self.known += len(chosen)
            return kept
        found = self.timer.timings(kernel, chosen, self.threads)
        self.measured += len(chosen)
        for key, timing in zip(keys, found, strict=True):
            if not isinstance(timing, TooNoisy):
                self.cache.put("timings", key, json.dumps(asdict(timing)).encode())
        return [None if isinstance(timing, TooNoisy) else timing for timing in found]

    def _key(self, kernel: Found, spec: KernelSpec) -> str:
        schedule = schedule_text(spec.to_json())
        return digest(
            kernel.computation,
            schedule,
            str(kernel.symbols),
            str(self.threads),
            self.hardware.digest(),
            toolchain_key(),
        )


def near(alternatives: Sequence[KernelSpec], price: Callable[[KernelSpec], Latency], most: int) -> list[KernelSpec]:
    """The first, a template's own choice, and of the others the ``most`` - 1 predicted fastest whose ranges reach below where that of the
    fastest of all ends: which of these is faster, the price does not tell.
    """
    priced = [(price(spec), spec) for spec in alternatives]
    end = min(_range(latency)[1] for latency, _ in priced)
    close = [found for found in priced[1:] if _range(found[0])[0] <= end]
    fastest = sorted(close, key=lambda found: found[0].seconds)[: most - 1]
    return [alternatives[0], *(spec for _, spec in fastest)]


def _priced(price: Price, symbols: Sequence[int], spec: KernelSpec) -> Latency:
    return price(spec, symbols)


def _range(latency: Latency) -> tuple[float, float]:
    width = latency.seconds * latency.uncertainty
    return latency.seconds - width, latency.seconds + width


def _timing(kept: bytes | None) -> Timing | None:
    """None of what another version kept."""
    try:
        return None if kept is None else Timing(**json.loads(kept))
    except (TypeError, ValueError):
        return None
