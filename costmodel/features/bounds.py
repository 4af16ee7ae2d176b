"""Bytes against caches, and times that no code can beat: what the machine's speeds say of a kernel."""

from __future__ import annotations

from collections.abc import Sequence

from effc.costmodel import roofline
from effc.costmodel.features.fit import Fit
from effc.costmodel.features.scale import log, ratio
from effc.costmodel.features.work import Work
from effc.costmodel.hardware import Hardware, Speed

_ROLES = ("read", "write", "packed", "scratch")
#: Operands, by falling size, that have columns of their own.
_LARGEST = 3

COLUMNS: tuple[str, ...] = (
    "log_bytes",
    *(f"log_bytes_{role}" for role in _ROLES),
    *(f"log_bytes_{rank}" for rank in range(_LARGEST)),
    *(f"reuse_{rank}" for rank in range(_LARGEST)),
    *("bytes_in_l1", "bytes_in_l2", "bytes_in_l3"),
    "intensity",
    "dtype_rate",
    *("log_compute_time", "log_memory_time", "log_stream_time", "log_roof", "balance"),
    *("log_padded_time", "log_dispatch_share"),
)

#: Times are logarithms of nanoseconds.
_NANO = 1e9


def row(
    work: Work, touched: Sequence[tuple[str, int, float]], fit: Fit, hardware: Hardware, speed: Speed, rate: float
) -> list[float]:
    """In the order of `COLUMNS`. ``touched``: `Work.bytes_of` the spec; ``speed``: of all its threads, ``rate``: of its dtype."""
    threads = fit.threads
    by_role = dict.fromkeys(_ROLES, 0)
    for role, size, _ in touched:
        if role == "readwrite":
            by_role["read"] += size
            by_role["write"] += size
        else:
            by_role[role] += size
    total = sum(size for role, size in by_role.items() if role != "scratch")
    largest = sorted(((size, often) for role, size, often in touched if role != "scratch"), reverse=True)[:_LARGEST]
    largest += [(0, 0.0)] * (_LARGEST - len(largest))
    compute = work.operations / (speed.flops * rate)
    memory = total / speed.bandwidth
    stream = fit.streamed / (hardware.caches[1] * threads)
    roof = max(compute, memory)
    return [
        log(total),
        *(log(size) for size in by_role.values()),
        *(log(size) for size, _ in largest),
        *(ratio(often, 1.0) for _, often in largest),
        ratio(total, hardware.l1 * threads),
        ratio(total, hardware.l2 * threads),
        ratio(total, hardware.l3),
        ratio(work.operations, total),
        rate,
        *(log(seconds * _NANO) for seconds in (compute, memory, stream, roof)),
        ratio(compute, memory),
        log(max(compute * fit.padded, memory, stream) * _NANO),
        ratio(roofline.OVERHEAD, roof),
    ]
