"""Instruction sets that the CPU has and the system hands out on request.

Linux keeps AMX's tile registers from a process until it asks: their state makes every thread's 8 KiB larger. The permission holds for all
threads of the process and for what it forks, not for what it executes. See "Dynamically enabled XSTATE features"
(Documentation/arch/x86/xstate.rst in Linux).
"""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Collection
from functools import lru_cache

#: The system call arch_prctl on x86-64, its ARCH_REQ_XCOMP_PERM, and the number of the tiles' state, XFEATURE_XTILE_DATA.
_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18


def usable(flags: Collection[str]) -> frozenset[str]:
    """``flags`` (names as in /proc/cpuinfo) without those of tile registers, if the system refuses them to this process."""
    tiles = frozenset(f for f in flags if f.startswith("amx"))
    return frozenset(flags) if not tiles or tiles_permitted() else frozenset(flags) - tiles


@lru_cache(maxsize=1)
def tiles_permitted() -> bool:
    """Whether the system lets this process use tile registers; it is asked once."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    return _arch_prctl(_REQUEST_PERMISSION, _TILE_DATA) == 0


def _arch_prctl(code: int, argument: int) -> int:
    """0, or -1 where the system refuses: it is older than Linux 5.16, or a thread's stack for signals has no room for the state."""
    refused: int = ctypes.CDLL(None).syscall(ctypes.c_long(_ARCH_PRCTL), ctypes.c_long(code), ctypes.c_long(argument))
    return refused
