"""Blocks that a processor holds: cases of NVIDIA's occupancy calculator, and what follows from the limits alone."""

from __future__ import annotations

import pytest

from effc.compiler.codegen.gpu.occupancy import resident_blocks
from effc.compiler.codegen.gpu.target import GpuTarget

_CAPABILITIES = ("sm_80", "sm_86", "sm_87", "sm_89", "sm_90", "sm_100", "sm_103", "sm_120", "sm_130")


@pytest.mark.parametrize(
    ("name", "warps", "registers", "shared", "blocks"),
    [
        ("sm_80", 8, 32, 0, 8),  # all limits at once
        ("sm_80", 8, 64, 0, 4),  # 65536 registers are those of 32 such warps
        ("sm_80", 8, 65, 0, 3),  # 72 of them a thread are handed out
        ("sm_80", 4, 255, 0, 2),
        ("sm_80", 1, 32, 0, 32),  # no more blocks than 32
        ("sm_80", 4, 32, 48 << 10, 3),  # 49 KiB of 164 each
        ("sm_80", 8, 128, 163 << 10, 1),
        ("sm_90", 8, 168, 227 << 10, 1),
        ("sm_90", 4, 96, 32 << 10, 5),  # registers: 20 warps; shared memory: 6 blocks
        ("sm_86", 8, 32, 0, 6),  # 48 warps
        ("sm_86", 1, 32, 0, 16),
        ("sm_89", 1, 32, 0, 24),
    ],
)
def test_published_cases(name: str, warps: int, registers: int, shared: int, blocks: int) -> None:
    target = GpuTarget.named(name)
    assert resident_blocks(target, warps, registers, shared) == blocks


@pytest.mark.parametrize("name", _CAPABILITIES)
def test_more_of_anything_never_holds_more(name: str) -> None:
    """And what a block may have at most, one has; more, none."""
    target = GpuTarget.named(name)
    for warps in (1, 2, 4, 8, 16):
        for step in (
            [resident_blocks(target, warps, registers, 0) for registers in range(1, 256)],
            [resident_blocks(target, warps, 32, shared) for shared in range(0, 232 << 10, 1000)],
        ):
            assert step == sorted(step, reverse=True)
    assert resident_blocks(target, 4, 32, target.shared_bytes) == 1
    assert resident_blocks(target, 4, 32, target.shared_bytes + 1) == 0
    assert resident_blocks(target, 4, 64, 0) > 0
