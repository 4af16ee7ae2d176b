"""A core's pace, from what was measured of it: cycles, and what it starts in each."""

from __future__ import annotations

from dataclasses import dataclass

from effc.costmodel.hardware import Hardware

#: Cycles until a multiply-add's result can be used.
LATENCY = 4


@dataclass(frozen=True)
class Core:
    """``cycle``: seconds; ``starts``: vector multiply-adds, or loads, in each; ``registers``: for vectors; ``item_lanes``: of 4 bytes.
    ``pairs_halves``: whether two instructions of half vectors take no longer than one of whole ones.
    """

    cycle: float
    starts: int
    registers: int
    item_lanes: int
    pairs_halves: bool

    @staticmethod
    def of(hardware: Hardware) -> Core:
        """AMD's cores that have bf16 but no tiles take two cycles for 512 bits, as far as flags tell: Zen 4. Zen 5 does not, and is then
        taken for a core of half the cycles.
        """
        wide = hardware.vector_bytes == 64
        halves = wide and "avx512_bf16" in hardware.isa and "amx_bf16" not in hardware.isa
        lanes = max(hardware.vector_bytes // 4, 1)
        starts = 1 if halves else 2
        pairs = halves and "avx_vnni" not in hardware.isa
        return Core(2 * lanes * starts / hardware.one.flops, starts, 32 if wide else 16, lanes, pairs)
