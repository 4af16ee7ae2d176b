"""Few rows of bytes times packed codes: sums of integers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from kernels import HOST
from low_bit_cases import Data, Linear, Runner, random_data, weight

from effc.compiler.codegen.cpu.contraction.byte_factors import sums_bytes
from effc.compiler.ir.formats import INT4, NF4, UINT2, UINT4, Format

pytestmark = pytest.mark.skipif(not sums_bytes(HOST), reason="this CPU has no AVX512-VNNI")

BYTES = None
SUM = "vpdpbusd"


def products(case: Linear, data: Data) -> torch.Tensor:
    """Of the integers, in float64, exact."""
    return data.x.double() @ weight(case, data).T + data.bias.double()


def integers(case: Linear, m: int) -> Data:
    """With a bias of integers, so that the results are some."""
    data = random_data(case, m)
    return replace(data, bias=torch.randint(-99, 99, (case.n,)).float())


@pytest.mark.parametrize("m", [1, 2, 3, 7, 8])
@pytest.mark.parametrize(
    ("format_", "zero", "k", "group"),
    [
        (INT4, "", 576, 64), (INT4, "i8", 576, 64), (INT4, "i8", 35, 5), (INT4, "", 257, 0), (UINT4, "i8", 600, 200),
        (UINT2, "i8", 63, 21), (Format(2), "", 1000, 0), (Format(3), "i8", 144, 48), (BYTES, "i8", 96, 32), (INT4, "i8", 17, 17),
        (INT4, "", 2, 0),
    ],
)  # fmt: skip
def test_integers_are_exact(m: int, format_: Format | None, zero: str, k: int, group: int) -> None:
    case = Linear(m, 49, k, group, format_, "i8", zero, x="i8")
    assert SUM in Runner(case).kernel.text
    data = integers(case, m)
    expected = products(case, data)
    assert expected.abs().max() < 2**24
    for threads in (1, 2):
        assert torch.equal(Runner(case).run(data, threads).double(), expected)


@pytest.mark.parametrize("zero", [-128, 0, 127])
@pytest.mark.parametrize("element", [-128, 127])
@pytest.mark.parametrize("code", [-8, 7])
def test_extremes(zero: int, element: int, code: int) -> None:
    case = Linear(2, 33, 256, 128, INT4, "i8", "i8", x="i8")
    data = integers(case, 2)
    zeros, scales = (torch.full_like(g, v) for g, v in zip(data.grains, (zero, 3), strict=True))
    data = replace(
        data, x=torch.full_like(data.x, element), codes=torch.full_like(data.codes, code), grains=[zeros, scales]
    )
    assert torch.equal(Runner(case).run(data).double(), products(case, data))


@pytest.mark.parametrize("m", [1, 3])
@pytest.mark.parametrize(("k", "group"), [(576, 64), (257, 0), (96, 32)])
def test_scales_in_floats(m: int, k: int, group: int) -> None:
    case = Linear(m, 49, k, group, INT4, zero="i8", x="i8")
    assert SUM in Runner(case).kernel.text
    Runner(case).check(random_data(case, m))


def test_a_number_of_rows_that_is_known_at_run_time_alone() -> None:
    case = Linear("m", 49, 576, 64, INT4, "i8", "i8", x="i8")
    runner = Runner(case)
    assert SUM in runner.kernel.text
    for m in (0, 1, 2, 3, 4, 5, 9, 70):
        runner.check(random_data(case, m))


@pytest.mark.parametrize(
    "case",
    [
        Linear(1, 49, 64, 64, NF4, x="i8"),
        Linear(1, 49, 64, 64, UINT4, zero="f32", x="i8"),
        Linear(9, 49, 64, 64, INT4, "i8", x="i8"),
    ],
    ids=["codebook", "zero points in floats", "many rows"],
)
def test_others_stay_floats(case: Linear) -> None:
    runner = Runner(case)
    assert SUM not in runner.kernel.text
    runner.check(random_data(case, int(case.m)))


def test_sums_that_i32_might_not_hold() -> None:
    case = Linear(1, 17, 66000, 0, INT4, "i8", x="i8")
    data = random_data(case, 1)
    data = replace(data, x=torch.full_like(data.x, -128), codes=torch.full_like(data.codes, -8))
    Runner(case).check(data)


def test_without_the_instruction_codes_become_floats() -> None:
    plain = replace(HOST, features=HOST.features - {"avx512_vnni"})
    case = Linear(1, 49, 64, 64, INT4, "i8", "i8", x="i8")
    runner = Runner(case, plain)
    assert SUM not in runner.kernel.text
    runner.check(random_data(case, 1))
