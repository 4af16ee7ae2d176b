"""What the machine is, and how many threads a call has."""

from __future__ import annotations

from effc.costmodel.features.scale import share
from effc.costmodel.hardware import Hardware

#: Instruction sets that change the code of a kernel, by their flags.
SETS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "avx_vnni", "amx_bf16", "amx_int8")

COLUMNS: tuple[str, ...] = (
    "vector_bytes",
    "threads",
    *(f"has_{name}" for name in SETS),
    *("log_l1_bytes", "log_l2_bytes", "log_l3_bytes"),
    *("log_flops", "log_bandwidth", "log_thread_flops"),
    *("log_l1_bandwidth", "log_l2_bandwidth", "log_l3_bandwidth"),
    "ratio_flops_bytes",
)


def row(hardware: Hardware, threads: int) -> list[float]:
    """In the order of `COLUMNS`; sets count only where code for this vector width may use them."""
    speed = hardware.speed_of(threads)
    return [
        float(hardware.vector_bytes),
        float(threads),
        *(float(usable(hardware, name)) for name in SETS),
        *(float(size) for size in (hardware.l1, hardware.l2, hardware.l3)),
        *(speed.flops, speed.bandwidth, hardware.one.flops),
        *hardware.caches,
        share(speed.flops, speed.bandwidth),
    ]


def usable(hardware: Hardware, name: str) -> bool:
    """Whether the CPU has the set, and code for this vector width may use it."""
    needed = 64 if name.startswith(("avx512", "amx")) else 32
    return name in hardware.isa and hardware.vector_bytes >= needed
