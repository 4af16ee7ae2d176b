"""Where code for tile registers runs in tests: by emulation (`amx_emulator`), and natively where the CPU has them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from amx_emulator import Emulator
from kernels import HOST

#: What an Intel CPU with tile registers has, of what this one has.
AMX = replace(HOST, name="amx", features=HOST.features | {"amx_tile", "amx_bf16", "amx_int8"})

needs_vectors = pytest.mark.skipif(not HOST.has("avx512f"), reason="code for tile registers has vectors of AVX-512 too")
#: Parameters of a fixture of machines.
WAYS = ("emulated", "native")


@contextmanager
def tile_registers(way: str) -> Iterator[Emulator | None]:
    """The emulator, or None for the CPU's own; what it found is checked at the end."""
    if way == "native":
        if not HOST.has("amx_bf16"):
            pytest.skip("this CPU has no tile registers for bf16")
        yield None
        return
    emulator = Emulator()
    yield emulator
    emulator.check()
