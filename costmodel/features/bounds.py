"""Bytes against caches, and times that no code can beat: what the machine's speeds say of a kernel."""

from __future__ import annotations

from collections.abc import Sequence

from effc.costmodel import roofline
from effc.costmodel.features.fit import Fit
from effc.costmodel.features.scale import share
from effc.costmodel.features.work import Work
from effc.costmodel.hardware import Hardware, Speed

_ROLES = ("read", "write", "packed", "scratch")
#: Operands, by falling size, that have columns of their own.
_LARGEST = 3

COLUMNS: tuple[str, ...] = (
    "log_bytes",
    *(f"log_bytes_{role}" for role in _ROLES),
    *(f"log_bytes_{rank}" for rank in range(_LARGEST)),
    *(f"ratio_reuse_{rank}" for rank in range(_LARGEST)),
    *("ratio_bytes_l1", "ratio_bytes_l2", "ratio_bytes_l3"),
    "ratio_intensity",
    "dtype_rate",
    *("log_compute_time", "log_memory_time", "log_stream_time", "log_roof", "ratio_balance"),
    *("log_padded_time", "ratio_dispatch"),
)

#: Times are in nanoseconds.
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
        total,
        *by_role.values(),
        *(size for size, _ in largest),
        *(often for _, often in largest),
        share(total, hardware.l1 * threads),
        share(total, hardware.l2 * threads),
        share(total, hardware.l3),
        share(work.operations, total),
        rate,
        *(seconds * _NANO for seconds in (compute, memory, stream, roof)),
        share(compute, memory),
        max(compute * fit.padded, memory, stream) * _NANO,
        share(roofline.OVERHEAD, roof),
    ]
