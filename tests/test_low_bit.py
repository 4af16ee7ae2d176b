"""Linears whose weights are quantized: integers and low-bit codes, in groups, against float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from kernels import HOST
from low_bit_cases import Linear, Runner, random_data, weight

from effc.compiler.codegen.cpu.schedules import Packing, alternatives, default_schedule, packing, supports
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.errors import LoweringError
from effc.compiler.ir.formats import INT4, NF4, UINT2, UINT4, Format
from effc.compiler.ir.spec import KernelSpec
from effc.runtime.derive import derive

TARGETS = {
    "host": HOST,
    "no bf16": replace(HOST, features=HOST.features - {"avx512_bf16"}),
    "no tiles": replace(HOST, features=HOST.features - {"amx_tile", "amx_bf16", "amx_int8"}),
    "avx2": Target.named("avx2"),
}
TARGETS["x86-64"] = Target.named("x86-64")
TERNARY, POWERS, THREE = Format(2), Format(3, codebook=(0.0, 0.5, 1.0, 2.0, -0.0, -0.5, -1.0, -2.0)), Format(3)


@pytest.mark.parametrize("x", ["f32", "bf16"])
@pytest.mark.parametrize(("m", "n"), [(1, 2), (3, 15), (1, 33), (33, 17)])
@pytest.mark.parametrize(("k", "group"), [(96, 32), (60, 12), (35, 5), (192, 64), (600, 200), (31, 0), (257, 0)])
def test_four_bits(m: int, n: int, k: int, group: int, x: str) -> None:
    case = Linear(m, n, k, group, INT4, x=x)
    runner = Runner(case)
    for threads in (1, 2):
        runner.check(random_data(case, m), threads)


@pytest.mark.parametrize("x", ["f32", "bf16"])
@pytest.mark.parametrize("zero", ["f32", "i8"])
@pytest.mark.parametrize(
    ("format_", "k", "group"), [(UINT4, 96, 32), (UINT4, 45, 0), (UINT2, 63, 21), (None, 96, 32), (None, 45, 0)]
)
@pytest.mark.parametrize("m", [3, 33])
def test_zero_points(m: int, k: int, group: int, format_: Format | None, zero: str, x: str) -> None:
    case = Linear(m, 40, k, group, format_, zero=zero, x=x)
    Runner(case).check(random_data(case, m), 2)


def test_a_zero_point_without_a_scale() -> None:
    case = Linear(3, 40, 96, 32, UINT4, scale="", zero="i8")
    Runner(case).check(random_data(case, 3))


@pytest.mark.parametrize("x", ["f32", "bf16"])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(
    ("m", "n", "k", "group"), [(1, 17, 64, 0), (3, 33, 131, 0), (40, 70, 300, 0), (2, 33, 96, 32), (33, 50, 96, 8)]
)
def test_bytes(m: int, n: int, k: int, group: int, after: bool, x: str) -> None:
    case = Linear(m, n, k, 0 if after else group, after=after, x=x)
    Runner(case).check(random_data(case, m), 2)


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize(
    ("format_", "x"),
    [
        *((f, "f32") for f in (INT4, UINT4, NF4, TERNARY, POWERS, THREE, Format(1, signed=False), None)),
        *((f, "bf16") for f in (INT4, NF4, POWERS, None)),
    ],
)
@pytest.mark.parametrize("m", [1, 2, 7, 21])
def test_formats_on_each_instruction_set(m: int, format_: Format | None, x: str, name: str) -> None:
    case = Linear(m, 37, 192, 64, format_, x=x)
    Runner(case, TARGETS[name]).check(random_data(case, m), 2)


@pytest.mark.parametrize("scale", ["bf16", "f16"])
def test_scales_of_low_precision(scale: str) -> None:
    for m in (2, 21):
        case = Linear(m, 37, 128, 32, INT4, scale=scale)
        Runner(case).check(random_data(case, m))


@pytest.mark.parametrize("x", ["f32", "bf16"])
@pytest.mark.parametrize("format_", [INT4, None])
def test_rows_known_only_at_run_time(format_: Format | None, x: str) -> None:
    case = Linear("s0", 70, 96, 32, format_, x=x)
    runner = Runner(case)
    for m in (0, 1, 2, 4, 5, 8, 9, 97, 130, 200):
        for threads in (1, 2):
            runner.check(random_data(case, m), threads)


@pytest.mark.parametrize("m", [1, 3, 33])
@pytest.mark.parametrize("code", [-8, 7])
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-40, -1.5, 1e30])
def test_extreme_codes_and_scales(m: int, code: int, scale: float) -> None:
    case = Linear(m, 33, 96, 32, INT4)
    data = random_data(case, m)
    data.codes.fill_(code)
    data.grains[0][:, 1] = scale
    Runner(case).check(data)


@pytest.mark.parametrize("m", [1, 33])
def test_bytes_at_the_ends_of_their_range(m: int) -> None:
    for x in ("f32", "bf16"):
        case = Linear(m, 33, 96, 32, zero="i8", x=x)
        data = random_data(case, m)
        data.codes[:, ::2], data.codes[:, 1::2] = -128, 127
        data.grains[0][:, 0], data.grains[0][:, 1:] = 127, -128
        Runner(case).check(data)


@pytest.mark.parametrize("m", [1, 33])
def test_small_integers_are_summed_exactly(m: int) -> None:
    """Every product and sum is an integer below 2^24: no bit may differ."""
    for x in ("f32", "bf16"):
        case = Linear(m, 33, 128, 32, INT4, x=x)
        data = random_data(case, m)
        data.x.copy_(torch.randint(-8, 9, data.x.shape))
        data.grains[0].copy_(torch.randint(0, 4, data.grains[0].shape))
        data.bias.zero_()
        expected = data.x.double() @ weight(case, data).T
        assert torch.equal(Runner(case).run(data, 2), expected.float())


def test_a_value_that_is_not_finite_reaches_its_row_alone() -> None:
    for m in (3, 33):
        case = Linear(m, 33, 96, 32, INT4)
        data = random_data(case, m)
        data.x[1, 40] = float("nan")
        out = Runner(case).run(data)
        assert out[1].isnan().all()
        assert out[[0, *range(2, m)]].isfinite().all()


def test_rounding_errors_are_those_of_short_chains() -> None:
    """Relative L2 error over a long K: chains of 4096 additions would give about 9 eps (`tile`)."""
    for m, group in ((2, 0), (2, 512), (40, 0), (40, 512), (2, 32), (40, 32)):
        case = Linear(m, 64, 4096, group, INT4)
        data = random_data(case, m)
        expected = data.x.double() @ weight(case, data).T + data.bias.double()
        error = (Runner(case).run(data).double() - expected).norm() / expected.norm()
        assert error <= 4 * 2.0**-23, (m, group, error / 2.0**-23)


@pytest.mark.parametrize("m", [2, 40])
def test_each_schedule_computes_the_same(m: int) -> None:
    for x in ("f32", "bf16"):
        case = Linear(m, 70, 96, 32, UINT4, zero="i8", x=x)
        base = case.packing()
        assert isinstance(base, Packing)
        for spec in alternatives(base.spec, HOST)[:8]:
            schedule = {name: value for name, value in spec.schedule.parameters if isinstance(value, int)}
            runner = Runner(case, HOST, **schedule)
            assert runner.kernel.spec == spec  # sizes of packed operands follow the schedule
            runner.check(random_data(case, m), 2)


# -- packing ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("format_", [INT4, UINT2, Format(3), Format(1, signed=False)])
def test_packed_codes_stand_where_the_format_says(format_: Format) -> None:
    n, k, nr, group = 17, 21, 16, format_.codes_a_word
    codes = torch.randint(format_.limits[0], format_.limits[1] + 1, (n, k), dtype=torch.int8)
    view = {
        "offset": 0,
        "sizes": (n, k),
        "strides": (k, 1),
        "batch": 0,
        "inner": 1,
        "nr": nr,
        "group": group,
        "filled": group,
    }
    words = derive("pack_codes", codes, {**view, "bits": format_.bits, "limits": format_.limits}).view(torch.int32)
    assert words.shape == (1, 2, -(-k // group), nr, 1)
    for column in range(n):
        for step in range(k):
            word = int(words[0, column // nr, step // group, column % nr, 0])
            found = word >> format_.place(step % group) & ((1 << format_.stored_bits) - 1)
            assert found == int(codes[column, step]) & ((1 << format_.bits) - 1)


def test_a_weight_takes_its_bits_and_its_scales() -> None:
    found = Linear(1, 64, 256, 64, INT4).packing()
    assert isinstance(found, Packing)
    sizes = [o.size.constant for o in found.spec.operands if o.role == "packed"]
    assert sizes == [64 * 256 // 2, 64 * 4]


def test_views_of_the_model_are_packed_where_they_lie() -> None:
    """Codes ``[k, n]`` at an offset, scales ``[groups, n]``."""
    plain, turned = (Linear(3, 20, 64, 16, INT4, turned=t) for t in (False, True))
    data = random_data(plain, 3)
    memory = torch.cat([torch.zeros(turned.offset, dtype=torch.int8), data.codes.T.flatten()])
    given = [data.x, memory, data.grains[0].T.contiguous()]
    found = turned.packing()
    assert isinstance(found, Packing), found
    for (operand, function, attributes), expected in zip(
        found.derivations(), Runner(plain).tensors(data)[1:3], strict=True
    ):
        assert torch.equal(derive(function, given[operand], attributes), expected)


# -- what is refused --------------------------------------------------------------------------------------------------
def refused(case: Linear, constants: range | list[int] | None = None) -> str:
    found = packing(case.spec(), range(1, 2 + len(case.grains)) if constants is None else constants, HOST)
    assert isinstance(found, str)
    return found


def test_refusals_say_why() -> None:
    linear = Linear(3, 32, 96, 32, INT4)
    assert refused(replace(linear, group=36)) == "groups of 36 codes along d2, a sum of 96"
    assert refused(linear, [1]) == "codes, scales and zero points are packed where all of them are constant"
    assert refused(replace(linear, n=1)) == "a factor without columns (N = 1) is read in place, not packed"
    assert supports(linear.spec(), HOST) == "a quantized factor is read from packed panels only"
    with pytest.raises(LoweringError, match="packed panels only"):
        default_schedule(linear.spec(), HOST)


def test_a_scale_of_the_left_factor_is_refused() -> None:
    spec = Linear(3, 32, 96, 32, INT4).spec()
    at = next(i for i, instr in enumerate(spec.body) if instr.op == "contract")
    scale = next(i for i, instr in enumerate(spec.body) if instr.op == "arith.mulf")
    body = list(spec.body)
    body[at] = replace(body[at], args=(scale, scale))
    assert isinstance(supports(replace(spec, body=tuple(body)), HOST), str)


def test_formats_are_checked() -> None:
    with pytest.raises(ValueError, match="1 to 4 bits, or 8, not 5"):
        Format(5)
    with pytest.raises(ValueError, match="16 numbers, not 3"):
        Format(4, codebook=(0.0, 1.0, 2.0))
    with pytest.raises(ValueError, match="not finite"):
        Format(1, codebook=(0.0, float("nan")))


def test_a_spec_survives_its_text() -> None:
    found = Linear(3, 32, 192, 64, NF4).packing()
    assert isinstance(found, Packing)
    assert KernelSpec.from_json(found.spec.to_json()) == found.spec
