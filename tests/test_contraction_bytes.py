"""Products of unsigned with signed bytes: every bit as in integers, on each instruction set."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from contraction_cases import Case, Runner
from kernels import HOST

from effc.compiler.codegen.cpu.contraction.form import packed_group
from effc.compiler.codegen.cpu.contraction.roles import find
from effc.compiler.codegen.cpu.target import Target
from effc.runtime.derive import derive

TARGETS = {
    "host": HOST,
    "no vnni": replace(HOST, features=HOST.features - {"avx512_vnni"}),
    "avx2": Target.named("avx2"),
}
TARGETS["x86-64"] = Target.named("x86-64")


def linear(m: int | str, n: int, k: int, **more: object) -> Case:
    case = Case((m, n, k), 1, (k, 0, 1), (0, k, 1), (n, 1), dtype="i8", result="i32", unsigned=0)
    return replace(case, **more)  # type: ignore[arg-type]


def grouped(runner: Runner) -> bool:
    nest = find(runner.kernel.spec)
    assert not isinstance(nest, str), nest
    return packed_group(nest) == 4


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 31, 64, 131])
@pytest.mark.parametrize(("m", "n"), [(1, 1 + 1), (1, 64), (3, 17), (15, 15), (33, 70)])
def test_linear(m: int, n: int, k: int, name: str) -> None:
    runner = Runner(linear(m, n, k, bias=(0, 1)), 1, TARGETS[name])
    assert grouped(runner)
    for threads in (1, 2):
        runner.check(threads)


def test_the_other_factor_may_be_the_unsigned_one() -> None:
    runner = Runner(linear(19, 35, 67, unsigned=1), 1)
    assert grouped(runner)
    runner.check(2)


def test_rows_known_only_at_run_time() -> None:
    runner = Runner(linear("m", 48, 70), 1)
    for m in (0, 1, 7, 8, 9, 100):
        runner.check(2, m=m)


@pytest.mark.parametrize("channels", [3, 4, 16, 18])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("planes", [False, True])
def test_convolution(channels: int, stride: int, planes: bool) -> None:
    """5 x 7 outputs of 3x3 windows, the image channels-last or in planes, the weight [out, 3, 3, channels]."""
    rows, row = 2 * 5 + 3, 2 * 7 + 3
    lhs = (row * channels * stride, channels * stride, 0, row * channels, channels, 1)
    if planes:
        lhs = (row * stride, stride, 0, row, 1, rows * row)
    rhs = (0, 0, 9 * channels, 3 * channels, channels, 1)
    case = Case((5, 7, 20, 3, 3, channels), 3, lhs, rhs, (140, 20, 1), dtype="i8", result="i32", unsigned=0)
    runner = Runner(case, 1)
    assert grouped(runner)
    runner.check(2)


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize(("x", "w"), [(255, -128), (255, 127), (0, -128), (128, 1)])
def test_extreme_values_do_not_saturate(x: int, w: int, name: str) -> None:
    m, n, k = 2, 33, 515
    runner = Runner(linear(m, n, k), 1, TARGETS[name])
    left, weight = torch.full((m, k), x, dtype=torch.uint8), torch.full((n, k), w, dtype=torch.int8)
    out = torch.full((m, n), 77, dtype=torch.int32)
    assert runner.kernel([left, derive("pack_panels", weight, runner.attributes), out]) == 0
    assert torch.equal(out, torch.full((m, n), x * w * k, dtype=torch.int32))


@pytest.mark.parametrize("unsigned", [None, 0])
def test_depthwise_has_no_groups(unsigned: int | None) -> None:
    """4 x 6 outputs of 3x3 windows, one filter a channel, channels last."""
    channels, row = 21, 8 * 21
    lhs, rhs = (row, channels, 1, row, channels), (0, 0, 1, 3 * channels, channels)
    case = Case(
        (4, 6, channels, 3, 3), 2, lhs, rhs, (6 * channels, channels, 1), dtype="i8", result="i32", unsigned=unsigned
    )
    runner = Runner(case, 1)
    assert not grouped(runner)
    runner.check(2)


def test_two_signed_factors_have_no_groups() -> None:
    runner = Runner(linear(9, 33, 40, unsigned=None), 1)
    assert not grouped(runner)
    runner.check(2)
