"""Few rows of floats times codes, the rows in fixed point: as exact as sums of floats, whatever the rows hold."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from kernels import HOST
from low_bit_cases import Data, Linear, Runner, random_data, weight

from effc.compiler.codegen.cpu.contraction.byte_factors import sums_bytes
from effc.compiler.codegen.cpu.contraction.fixed_point import Chunks
from effc.compiler.ir.formats import INT4, NF4, UINT2, UINT4, Format

pytestmark = pytest.mark.skipif(not sums_bytes(HOST), reason="this CPU has no AVX512-VNNI")

BYTES = None
SUM = "vpdpbusd"


def error(case: Linear, data: Data, threads: int = 1) -> torch.Tensor:
    """How far each element is from float64's, in units of the sum of the products' magnitudes times float32's eps."""
    w, x = weight(case, data), data.x.double()
    size = x.abs() @ w.abs().T + data.bias.double().abs()
    got = Runner(case).run(data, threads).double()
    return (got - (x @ w.T + data.bias.double())).abs() / (size * 2.0**-24).clamp_min(1e-45)


@pytest.mark.parametrize("m", [1, 2, 3])
@pytest.mark.parametrize(
    ("format_", "zero", "k", "group"),
    [
        (INT4, "", 576, 64), (INT4, "", 35, 5), (INT4, "", 257, 0), (UINT4, "i8", 600, 200), (UINT4, "", 96, 96),
        (UINT2, "i8", 63, 21), (Format(2), "", 1000, 0), (Format(3), "", 144, 48),
        (BYTES, "", 576, 0), (BYTES, "i8", 96, 32), (BYTES, "", 3, 0), (BYTES, "", 127, 0),
    ],
)  # fmt: skip
def test_sums_are_as_exact_as_those_of_floats(m: int, format_: Format | None, zero: str, k: int, group: int) -> None:
    case = Linear(m, 49, k, group, format_, zero=zero)
    assert SUM in Runner(case).kernel.text
    for threads in (1, 2):
        assert error(case, random_data(case, m), threads).max() <= 4


def test_products_of_a_codebook_stay_floats() -> None:
    assert SUM not in Runner(Linear(1, 49, 64, 64, NF4)).kernel.text


def test_a_zero_point_that_is_no_integer_stays_a_float() -> None:
    assert SUM not in Runner(Linear(1, 49, 64, 64, UINT4, zero="f32")).kernel.text


def test_without_the_instruction_codes_become_floats() -> None:
    plain = replace(HOST, features=HOST.features - {"avx512_vnni"})
    case = Linear(1, 49, 64, 64, INT4)
    runner = Runner(case, plain)
    assert SUM not in runner.kernel.text
    runner.check(random_data(case, 1))


@pytest.mark.parametrize("format_", [INT4, BYTES])
@pytest.mark.parametrize("exponent", [7, 9, 12, 20, 40, 100])
def test_one_element_dwarfs_the_others(format_: Format | None, exponent: int) -> None:
    """It meets codes of zero: the sum is that of the others, of which an integer of 31 bits beside it would keep less than 24."""
    case = Linear(1, 49, 256, 64, format_)
    data = random_data(case, 1)
    data.x[0, 70] = 2.0**exponent
    data.codes[:, 70] = 0
    assert error(case, data).max() <= 8


@pytest.mark.parametrize("format_", [INT4, BYTES])
@pytest.mark.parametrize("scale", [0.0, 1e-45, 1e-40, 1e-37, 1e-30, 1e30, 1e34])
def test_rows_of_any_magnitude(format_: Format | None, scale: float) -> None:
    case = Linear(2, 49, 128, 64, format_)
    data = random_data(case, 2)
    data.x.mul_(scale)
    data.bias.zero_()
    data.grains[0].mul_(0.01)
    got, expected = Runner(case).run(data).double(), data.x.double() @ weight(case, data).T
    bound = 8 * 2.0**-24 * (data.x.double().abs() @ weight(case, data).abs().T) + 128 * 128 * 2.0**-149
    assert ((got - expected).abs() <= bound).all()


def test_rows_of_several_magnitudes() -> None:
    """One chunk of a row is marked, another of zeros, those of the other row are not."""
    case = Linear(2, 49, 256, 64, INT4)
    data = random_data(case, 2)
    data.x[0, :64] *= torch.logspace(-20, 0, 64)
    data.x[0, 64:128] = 0
    data.x[0, 128:192] *= 1e-30
    assert error(case, data).max() <= 8


@pytest.mark.parametrize("format_", [INT4, BYTES])
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_what_is_not_finite_gives_what_floats_give(format_: Format | None, value: float) -> None:
    case = Linear(3, 49, 256, 64, format_)
    data = random_data(case, 3)
    data.x[1, 70] = value
    expected = (data.x.double() @ weight(case, data).T + data.bias).float()
    got = Runner(case).run(data, 2)
    assert torch.equal(got.isnan(), expected.isnan())
    assert torch.equal(got[1].isposinf(), expected[1].isposinf())
    assert torch.equal(got[1].isneginf(), expected[1].isneginf())
    assert got[[0, 2]].isfinite().all()


@pytest.mark.parametrize("code", [-128, 127])
@pytest.mark.parametrize("zero", [-128, 127])
def test_the_ends_of_all_ranges(code: int, zero: int) -> None:
    """Each digit is at its largest, and all have one sign."""
    case = Linear(2, 49, 160, 160, BYTES, zero="i8")
    data = random_data(case, 2)
    data.codes.fill_(code)
    data.grains[0].fill_(zero)
    data.x[0], data.x[1] = 1.0 - 2.0**-24, -(1.0 - 2.0**-24)
    assert error(case, data).max() <= 4


def test_rows_whose_number_is_known_only_at_run_time() -> None:
    case = Linear("s0", 70, 576, 64, INT4)
    runner = Runner(case)
    assert SUM in runner.kernel.text
    for m in (1, 2, 5, 40):
        runner.check(random_data(case, m), 2)


def test_a_row_that_does_not_fit_the_stack_stays_floats() -> None:
    case = Linear(1, 33, 16384, 0, BYTES)
    runner = Runner(case)
    assert SUM not in runner.kernel.text
    runner.check(random_data(case, 1))


@pytest.mark.parametrize("word", [4, 8, 16])
def test_chunks_cover_a_sum(word: int) -> None:
    for inner in [*range(1, 400), 1536, 4096, 11008]:
        chunks = Chunks.of(3, inner, word)
        assert sum(count * length for count, length in chunks.lengths) == inner
        assert all(length <= 255 for _, length in chunks.lengths)  # a digit's sum fits 16 bits
        assert chunks.size % 16 == 0  # a chunk starts with a whole vector of digits
