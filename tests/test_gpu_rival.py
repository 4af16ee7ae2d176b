"""How long a product is counted to take on a GPU, by effc's kernel and by a library's."""

from __future__ import annotations

from dataclasses import replace

import pytest

from effc.compiler.codegen.gpu.rival import Work, counted
from effc.compiler.codegen.gpu.target import GpuTarget

SM80, SM90 = GpuTarget.named("sm_80"), GpuTarget.named("sm_90")


def large(size: int, read_again: int = 0, dtype: str = "f16") -> Work:
    return Work(2.0 * size**3, 6.0 * size**2, 2.0 * read_again * size**2, dtype)


def test_the_count() -> None:
    """Multiplication bounds large products, memory those of few rows; a library's epilogue costs its traffic."""
    ours, theirs = counted(large(8192), SM90)
    assert ours > theirs
    assert ours == pytest.approx(1.25 * theirs)
    ours, theirs = counted(large(8192), SM80)
    assert ours == theirs
    few = Work(2.0 * 16 * 4096 * 4096, 2.0 * 4096 * 4096, 2.0 * 16 * 4096, "f16")
    ours, theirs = counted(few, SM90)
    assert theirs > ours
    assert counted(replace(few, moved=2 * few.moved), SM90)[0] == pytest.approx(2 * ours)
    one, other = (counted(large(1024, read_again), SM90) for read_again in (0, 1))
    assert one[0] == other[0]
    assert one[1] < other[1]
    older, newer = (counted(large(4096), replace(GpuTarget.named(n), processors=80)) for n in ("sm_89", "sm_120"))
    assert newer[1] == older[1], "without the wide multiplications of data centres' GPUs"
    exact, rounded = (counted(large(4096, dtype=dtype), SM90)[1] for dtype in ("f32", "tf32"))
    assert exact == pytest.approx(8 * rounded)
