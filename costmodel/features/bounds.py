"""Bytes against caches, and times that no code can beat: what the machine's speeds say of a kernel."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from effc.costmodel import roofline
from effc.costmodel.features.schedules import Numbers
from effc.costmodel.hardware import Hardware, Speed

Array = NDArray[np.float64]

#: Operands, by falling size, that have columns of their own; packed ones have another.
LARGEST = 3

COLUMNS: tuple[str, ...] = (
    *("log_bytes", "log_bytes_read", "log_bytes_write", "log_bytes_packed", "log_bytes_scratch"),
    *(f"log_bytes_{rank}" for rank in range(LARGEST)),
    *(f"ratio_reuse_{rank}" for rank in range(LARGEST)),
    *("ratio_bytes_l1", "ratio_bytes_l2", "ratio_bytes_l3"),
    "ratio_intensity",
    "dtype_rate",
    *("log_compute_time", "log_memory_time", "log_roof", "ratio_balance", "ratio_dispatch"),
)

#: Times are in nanoseconds.
_NANO = 1e9


def columns(n: Numbers, hardware: Hardware, speed: Speed, threads: int) -> dict[str, Array]:
    """`COLUMNS`. ``speed``: of all threads."""
    total = n["activations"] + n["packed"]
    compute = n["operations"] / (speed.flops * n["rate"])
    memory = total / speed.bandwidth
    roof = np.maximum(compute, memory)
    return {
        "log_bytes": total,
        "log_bytes_read": n["read"],
        "log_bytes_write": n["write"],
        "log_bytes_packed": n["packed"],
        "log_bytes_scratch": n["scratch"],
        **{f"log_bytes_{rank}": n[f"bytes_{rank}"] for rank in range(LARGEST)},
        **{f"ratio_reuse_{rank}": n[f"reuse_{rank}"] for rank in range(LARGEST)},
        "ratio_bytes_l1": total / max(hardware.l1 * threads, 1),
        "ratio_bytes_l2": total / max(hardware.l2 * threads, 1),
        "ratio_bytes_l3": total / hardware.l3 if hardware.l3 else np.full_like(total, np.nan),
        "ratio_intensity": n["operations"] / np.maximum(total, 1),
        "dtype_rate": n["rate"],
        "log_compute_time": compute * _NANO,
        "log_memory_time": memory * _NANO,
        "log_roof": roof * _NANO,
        "ratio_balance": compute / np.maximum(memory, 1e-12),
        "ratio_dispatch": roofline.OVERHEAD / np.maximum(roof, 1e-12),
    }
