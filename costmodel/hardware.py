"""``Hardware``: a description of a CPU, as plain data. What cannot be read from the system is measured once and kept."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

_CPUINFO = Path("/proc/cpuinfo")
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


@dataclass(frozen=True)
class Speed:
    """``flops``: float32 operations a second of all threads, a multiply-add counted as two; ``bandwidth``: bytes a second
    that all threads together read from memory.
    """

    flops: float
    bandwidth: float


@dataclass(frozen=True)
class Speeds:
    """``all``: of all threads together; ``one``: of one thread alone; ``caches``: bytes a second that it reads from L1, L2 and L3."""

    all: Speed
    one: Speed
    caches: tuple[float, float, float]


@dataclass(frozen=True)
class Hardware:
    """``key``: ``Target.key`` of the code that runs on it. ``isa``: flags as in /proc/cpuinfo, sorted. ``cores``: that this process may
    use. ``l1``, ``l2``: bytes of data cache of one core, ``l3``: of the cache that cores share (0: unknown). ``measured``: whether
    speeds are, or are estimated from the rest: ``speed`` of all threads together, ``one`` of one alone, ``caches`` as in `Speeds`.
    """

    key: str
    name: str
    isa: tuple[str, ...]
    vector_bytes: int
    cores: int
    l1: int
    l2: int
    l3: int
    speed: Speed
    one: Speed
    caches: tuple[float, float, float]
    measured: bool

    def speed_of(self, threads: int) -> Speed:
        """Of so many threads together, in proportion between one and all."""
        if self.cores < 2:
            return self.speed
        share = (min(threads, self.cores) - 1) / (self.cores - 1)
        return Speed(
            self.one.flops + share * (self.speed.flops - self.one.flops),
            self.one.bandwidth + share * (self.speed.bandwidth - self.one.bandwidth),
        )

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "isa": list(self.isa), "caches": list(self.caches)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Hardware:
        """The description that ``to_json`` wrote; KeyError, OverflowError, TypeError or ValueError where ``data`` is not one."""
        known = {f.name: data[f.name] for f in fields(Hardware)}
        speed, one = _speed(data["speed"]), _speed(data["one"])
        l1, l2, l3 = (_positive(float(value)) for value in data["caches"])
        for name in ("vector_bytes", "cores"):
            _positive(float(data[name]))
        for name in ("l1", "l2", "l3"):
            _positive(1 + float(data[name]))  # 0: unknown
        return Hardware(**{**known, "isa": tuple(data["isa"]), "speed": speed, "one": one, "caches": (l1, l2, l3)})

    def digest(self) -> str:
        """A hash of what tells this kind of machine from others: its name and sizes, not the speeds measured on it."""
        parts = (self.key, self.name, *self.isa, str(self.cores), str(self.l1), str(self.l2), str(self.l3))
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def describe(key: str, vector_bytes: int, measure: Callable[[], Speeds | None]) -> Hardware:
    """This machine. ``measure`` gives its speeds, or None where nothing can be measured; then they are estimated."""
    found, cores = measure(), len(os.sched_getaffinity(0))
    speeds = found or _estimate(vector_bytes, cores)
    return Hardware(
        key=key,
        name=_field("model name") or "unknown",
        isa=flags(),
        vector_bytes=vector_bytes,
        cores=cores,
        l1=cache_bytes(1),
        l2=cache_bytes(2),
        l3=cache_bytes(3),
        speed=speeds.all,
        one=speeds.one,
        caches=speeds.caches,
        measured=found is not None,
    )


@lru_cache(maxsize=1)
def flags() -> tuple[str, ...]:
    """The CPU's flags, sorted; none where /proc/cpuinfo cannot be read."""
    return tuple(sorted(_field("flags").split()))


def _estimate(vector_bytes: int, cores: int) -> Speeds:
    """Two vector multiply-adds a cycle at 2.5 GHz, which x86 servers since 2017 reach; 10 GB/s a core, as one core reads alone; a vector,
    half and a quarter of one a cycle from L1, L2 and L3.
    """
    one = Speed(2 * 2 * vector_bytes / 4 * 2.5e9, 10e9)
    read = vector_bytes * 2.5e9
    return Speeds(Speed(one.flops * cores, one.bandwidth * cores), one, (read, read / 2, read / 4))


def _speed(data: Mapping[str, Any]) -> Speed:
    return Speed(_positive(float(data["flops"])), _positive(float(data["bandwidth"])))


def _positive(value: float) -> float:
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{value}, where a number above 0 should be")
    return value


def _field(name: str) -> str:
    try:
        text = _CPUINFO.read_text(encoding="utf-8")
    except OSError:
        return ""
    lines = (line.partition(":") for line in text.splitlines())
    return next((value.strip() for key, _, value in lines if key.strip() == name), "")


def cache_bytes(level: int) -> int:
    """Size of a core's data cache of that level, 0 where the system does not tell."""
    for index in sorted(_CACHES.glob("index*")):
        try:
            found = [(index / name).read_text(encoding="ascii").strip() for name in ("level", "type", "size")]
        except OSError:
            continue
        if found[0] == str(level) and found[1] != "Instruction" and found[2].endswith("K"):
            return int(found[2][:-1]) * 1024
    return 0
