"""``Hardware``: a description of a CPU, as plain data. What cannot be read from the system is measured once and kept."""

from __future__ import annotations

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
class Hardware:
    """``key``: ``Target.key`` of the code that runs on it. ``isa``: flags as in /proc/cpuinfo, sorted. ``cores``: that this process may
    use. ``l1``, ``l2``: bytes of data cache of one core, ``l3``: of the cache that cores share (0: unknown). ``measured``: whether
    ``speed`` is, or is estimated from the rest.
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
    measured: bool

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "isa": list(self.isa)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Hardware:
        """The description that ``to_json`` wrote; KeyError, TypeError or ValueError where ``data`` is not one."""
        known = {f.name: data[f.name] for f in fields(Hardware)}
        speed = Speed(float(data["speed"]["flops"]), float(data["speed"]["bandwidth"]))
        if not (speed.flops > 0 and speed.bandwidth > 0):
            raise ValueError(f"a speed of {speed}")
        return Hardware(**{**known, "isa": tuple(data["isa"]), "speed": speed})


def describe(key: str, vector_bytes: int, measure: Callable[[], Speed | None]) -> Hardware:
    """This machine. ``measure`` gives its speed, or None where nothing can be measured; then it is estimated."""
    speed, cores = measure(), len(os.sched_getaffinity(0))
    return Hardware(
        key=key,
        name=_field("model name") or "unknown",
        isa=flags(),
        vector_bytes=vector_bytes,
        cores=cores,
        l1=_cache_bytes("1", "Data"),
        l2=_cache_bytes("2", "Unified"),
        l3=_cache_bytes("3", "Unified"),
        speed=speed or _estimate(vector_bytes, cores),
        measured=speed is not None,
    )


@lru_cache(maxsize=1)
def flags() -> tuple[str, ...]:
    """The CPU's flags, sorted; none where /proc/cpuinfo cannot be read."""
    return tuple(sorted(_field("flags").split()))


def _estimate(vector_bytes: int, cores: int) -> Speed:
    """Two vector multiply-adds a cycle at 2.5 GHz, which x86 servers since 2017 reach; 10 GB/s a core, as one core reads alone."""
    return Speed(2 * 2 * vector_bytes / 4 * 2.5e9 * cores, 10e9 * cores)


def _field(name: str) -> str:
    try:
        text = _CPUINFO.read_text(encoding="utf-8")
    except OSError:
        return ""
    lines = (line.partition(":") for line in text.splitlines())
    return next((value.strip() for key, _, value in lines if key.strip() == name), "")


def _cache_bytes(level: str, kind: str) -> int:
    for index in sorted(_CACHES.glob("index*")):
        try:
            found = [(index / name).read_text(encoding="ascii").strip() for name in ("level", "type", "size")]
        except OSError:
            continue
        if found[:2] == [level, kind] and found[2].endswith("K"):
            return int(found[2][:-1]) * 1024
    return 0
