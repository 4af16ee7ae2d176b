"""How many blocks of threads a processor holds at once, by NVIDIA's published limits: what a kernel's registers and shared memory cost it.

How registers and shared memory are handed out is as NVIDIA's occupancy calculator has it: registers to warps in units of 256, to four warps
at a time, and shared memory in units of 128 bytes, of which the system takes 1 KiB a block.
"""

from __future__ import annotations

from effc.compiler.codegen.gpu.target import GpuTarget

_REGISTERS, _REGISTER_UNIT, _WARP_UNIT = 1 << 16, 256, 4
_SHARED_UNIT, _SYSTEM_SHARED = 128, 1024
_WARP = 32


def resident_blocks(target: GpuTarget, warps: int, registers: int, shared: int) -> int:
    """Blocks of ``warps`` warps, each thread with ``registers``, each block with ``shared`` bytes, that one processor holds at once; 0:
    none fits.
    """
    limits = target.hardware
    if shared > target.shared_bytes:
        return 0
    found = min(limits.blocks, limits.warps // warps)
    if registers:
        each = _up(registers * _WARP, _REGISTER_UNIT)
        found = min(found, _REGISTERS // each // _WARP_UNIT * _WARP_UNIT // warps)
    return min(found, (limits.shared << 10) // _up(shared + _SYSTEM_SHARED, _SHARED_UNIT))


def _up(size: int, unit: int) -> int:
    return -(-size // unit) * unit
