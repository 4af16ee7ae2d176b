"""Products by tile registers, against float64 or integers: heights, widths and lengths around those of the registers.

Each test runs by emulation and natively (`amx_machine`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from amx_emulator import Emulator
from amx_machine import AMX, WAYS, needs_vectors, tile_registers
from contraction_cases import Case, Runner
from kernels import Kernel

from effc.compiler.codegen.cpu import permission
from effc.compiler.codegen.cpu.contraction import amx_form
from effc.compiler.codegen.cpu.contraction.form import form
from effc.compiler.codegen.cpu.contraction.roles import find
from effc.compiler.codegen.cpu.objects import compile_object
from effc.compiler.codegen.cpu.schedules import packing
from effc.compiler.codegen.cpu.target import Target
from effc.runtime.derive import derive

pytestmark = needs_vectors


@dataclass
class Machine:
    """Where kernels run: the CPU, or ``emulator`` for its tile instructions."""

    emulator: Emulator | None

    def runner(self, case: Case) -> Runner:
        return Runner(case, 1, AMX, rewrite=self.emulator.rewrite if self.emulator else None)


@pytest.fixture(params=WAYS)
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """Takes tiles wherever they fit, also where they do not pay."""
    monkeypatch.setattr(amx_form, "pays", lambda nest: True)
    with tile_registers(request.param) as emulator:
        yield Machine(emulator)


def linear(m: int | str, n: int, k: int, **more: object) -> Case:
    return Case((m, n, k), 1, (k, 0, 1), (0, k, 1), (n, 1), dtype="bf16", **more)  # type: ignore[arg-type]


def byte_linear(m: int | str, n: int, k: int, **more: object) -> Case:
    return replace(linear(m, n, k, **more), dtype="i8", result="i32", unsigned=more.get("unsigned", 0))  # type: ignore[arg-type]


def is_amx(runner: Runner) -> bool:
    nest = find(runner.kernel.spec)
    assert not isinstance(nest, str), nest
    return form(nest, AMX) == "amx"


@pytest.mark.parametrize("k", [1, 2, 31, 32, 33, 63, 64, 129])
@pytest.mark.parametrize(
    ("m", "n"), [(1, 2), (1, 64), (3, 17), (15, 15), (16, 16), (17, 33), (32, 32), (33, 31), (70, 48), (97, 100)]
)
def test_linear(m: int, n: int, k: int, machine: Machine) -> None:
    runner = machine.runner(linear(m, n, k, bias=(0, 1), relu=True))
    assert is_amx(runner) == (k > 1), "a sum of one element is no sum"
    for threads in (1, 2):
        runner.check(threads)


@pytest.mark.parametrize("k", [2, 63, 64, 65, 129, 200])
@pytest.mark.parametrize(("m", "n"), [(1, 2), (3, 17), (16, 16), (17, 33), (32, 32), (33, 31), (97, 100)])
def test_linear_of_bytes(m: int, n: int, k: int, machine: Machine) -> None:
    runner = machine.runner(byte_linear(m, n, k, bias=(0, 1)))
    assert is_amx(runner)
    for threads in (1, 2):
        runner.check(threads)


def test_the_right_bytes_may_be_the_unsigned_ones(machine: Machine) -> None:
    runner = machine.runner(byte_linear(35, 33, 100, unsigned=1))
    assert is_amx(runner)
    runner.check(2)


@pytest.mark.parametrize(("x", "w"), [(255, -128), (255, 127), (128, 1)])
def test_extreme_bytes_do_not_saturate(x: int, w: int, machine: Machine) -> None:
    m, n, k = 2, 33, 515
    runner = machine.runner(byte_linear(m, n, k))
    left, weight = torch.full((m, k), x, dtype=torch.uint8), torch.full((n, k), w, dtype=torch.int8)
    out = torch.full((m, n), 77, dtype=torch.int32)
    assert runner.kernel([left, derive("pack_panels", weight, runner.attributes), out]) == 0
    assert torch.equal(out, torch.full((m, n), x * w * k, dtype=torch.int32))


@pytest.mark.parametrize("make", [linear, byte_linear])
@pytest.mark.parametrize("k", [40, 64])
def test_rows_known_only_at_run_time(k: int, make: Callable[..., Case], machine: Machine) -> None:
    runner = machine.runner(make("m", 48, k))
    assert is_amx(runner)
    for m in (0, 1, 2, 15, 16, 17, 31, 32, 33, 48, 64, 65, 97, 200):
        runner.check(2, m=m)


@pytest.mark.parametrize("m", [1, 31, 33, 65, 97])
def test_rows_that_two_units_compute_are_written_once(m: int, machine: Machine) -> None:
    """In place, a row that is written twice would have its addend added twice."""
    runner = machine.runner(linear(m, 48, 40, bias=(48, 1), result="f32"))
    for threads in (1, 2):
        runner.check(threads, in_place=True)


@pytest.mark.parametrize("dtype", ["bf16", "i8"])
@pytest.mark.parametrize("channels", [3, 32, 40])
@pytest.mark.parametrize("stride", [1, 2])
def test_convolution(channels: int, stride: int, dtype: str, machine: Machine) -> None:
    """5 x 7 outputs of 3x3 windows, channels last, the weight [out, 3, 3, channels]."""
    row = 2 * stride * 7 + 3
    lhs = (row * channels * stride, channels * stride, 0, row * channels, channels, 1)
    rhs = (0, 0, 9 * channels, 3 * channels, channels, 1)
    case = Case((5, 7, 20, 3, 3, channels), 3, lhs, rhs, (140, 20, 1), dtype=dtype, result="f32")
    if dtype == "i8":
        case = replace(case, result="i32", unsigned=0)
    runner = machine.runner(case)
    assert is_amx(runner)
    runner.check(2)


def test_rows_apart_and_an_offset(machine: Machine) -> None:
    """Rows of 40 elements, 51 apart, after 3 others."""
    case = Case((35, 33, 40), 1, (51, 0, 1), (0, 43, 1), (37, 1), dtype="bf16", offset=3)
    runner = machine.runner(case)
    assert is_amx(runner)
    runner.check(2)


@pytest.mark.parametrize("k", [40, 64])
def test_what_lies_behind_a_row_does_not_matter(k: int, machine: Machine) -> None:
    """The last step of K reads no neighbour: NaN and infinity there must not reach the sums, nor is anything read behind the last row."""
    m, n = 33, 20
    runner = machine.runner(linear(m, n, k))
    space = torch.full((m * k + 4096,), float("nan"), dtype=torch.bfloat16)
    space[: m * k] = torch.randn(m * k)
    space[k : 2 * k] = float("inf")
    weight = (torch.rand(n, k) + 1).bfloat16()
    out = torch.full((m, n), float("nan"), dtype=torch.bfloat16)
    assert runner.kernel([space, derive("pack_panels", weight, runner.attributes), out]) == 0
    rows = space[: m * k].view(m, k)
    torch.testing.assert_close(out, (rows.float() @ weight.float().T).bfloat16())
    if machine.emulator is not None:
        first, end = space.data_ptr() + 2 * m * k, space.data_ptr() + 2 * space.numel()
        assert not [(lo, hi) for lo, hi in machine.emulator.loads if lo < end and hi > first]


@pytest.mark.parametrize("special", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_in_its_row_or_column(special: float, machine: Machine) -> None:
    """The zeros that fill K and N meet no infinity."""
    m, n, k = 18, 17, 33
    x, weight = torch.rand(m, k).bfloat16() + 1, torch.rand(n, k).bfloat16() + 1
    x[5, 32], weight[16, 0] = special, special
    runner = machine.runner(linear(m, n, k))
    out = torch.empty(m, n, dtype=torch.bfloat16)
    assert runner.kernel([x, derive("pack_panels", weight, runner.attributes), out]) == 0
    torch.testing.assert_close(out, (x.double() @ weight.double().T).bfloat16(), equal_nan=True)


def test_subnormal_factors_and_sums_are_zero(machine: Machine) -> None:
    """As the manual says of TDPBF16PS, and as VDPBF16PS does."""
    x = torch.zeros(3, 32, dtype=torch.bfloat16)
    x[0, 0], x[1, 0], x[2, 0] = 1.0, 2.0**-127, 2.0**-70
    weight = torch.zeros(2, 32, dtype=torch.bfloat16)
    weight[0, 0], weight[1, 0] = 1.0, 2.0**-60
    runner = machine.runner(linear(3, 2, 32, result="f32"))
    out = torch.empty(3, 2)
    assert runner.kernel([x, derive("pack_panels", weight, runner.attributes), out]) == 0
    assert out.tolist() == [[1.0, 2.0**-60], [0.0, 0.0], [2.0**-70, 0.0]]


def test_bf16_results_are_rounded_to_nearest_even(machine: Machine) -> None:
    """By AVX512_BF16's instruction where there is one, which takes subnormal results for zero, as eager does on such a CPU."""
    bias = torch.tensor([0.0, 2.0**-8, 3 * 2.0**-8, 2.0**-7, 2.0**-9, float("nan"), float("inf"), 3e38 * 1.2])
    x, weight = torch.zeros(17, 32).bfloat16(), torch.zeros(8, 32).bfloat16()
    x[:, 0], weight[:, 0] = 1.0, 1.0
    runner = machine.runner(linear(17, 8, 32, bias=(0, 1)))
    out = torch.empty(17, 8, dtype=torch.bfloat16)
    assert runner.kernel([x, derive("pack_panels", weight, runner.attributes), bias, out]) == 0
    torch.testing.assert_close(out, (1 + bias).bfloat16().expand(17, 8), rtol=0, atol=0, equal_nan=True)
    assert ("cvtneps2bf16" in runner.kernel.text) == AMX.has("avx512_bf16")


@pytest.mark.parametrize("strides", [(1, 33), (80, 2)], ids=["columns first", "every other"])
def test_rows_whose_sums_are_not_contiguous_take_another_kernel(strides: tuple[int, int], machine: Machine) -> None:
    case = Case((33, 32, 40), 1, (strides[0], 0, strides[1]), (0, 40, 1), (32, 1), dtype="bf16")
    runner = machine.runner(case)
    assert not is_amx(runner)
    runner.check(2)


def test_each_thread_configures_and_releases_its_own_tiles() -> None:
    emulator = Emulator()
    runner = Machine(emulator).runner(linear(256, 256, 256))
    assert is_amx(runner)
    runner.check(2)
    emulator.check()
    assert len(emulator.threads) == 2
    assert emulator.counts["_configure"] == emulator.counts["_release"] == 2


def test_the_emulator_notices_misuse() -> None:
    """A kernel that does not configure, or does not release, or whose tiles have other sizes than it needs, is found out."""
    case = linear(16, 16, 32)
    for pattern, replacement, message in (
        (r"(?m)^.*ldtilecfg.*$", "", "has not configured"),
        (r"(?m)^.*tilerelease.*$", "", "still configured"),
        (r"(?m)^.*tilezero.*$", "", "before it is written"),
        (r"dense<0> : vector<64xi8>", "dense<1> : vector<64xi8>", "all to byte 16 zero"),
    ):
        emulator = Emulator()

        def broken(text: str, e: Emulator = emulator, p: str = pattern, r: str = replacement) -> str:
            changed = re.sub(p, r, text)
            assert changed != text
            return e.rewrite(changed)

        spec = packing(case.spec(), [1], AMX)
        assert not isinstance(spec, str)
        kernel = Kernel(spec.spec, AMX, broken)
        kernel([torch.zeros(16, 32).bfloat16(), torch.zeros(32, 32).bfloat16(), torch.zeros(16, 16).bfloat16()])
        with pytest.raises(AssertionError, match=message):
            emulator.check()


# -- code -------------------------------------------------------------------------------------------------------------
def test_llvm_emits_tile_instructions() -> None:
    """Also where the compiling CPU has none. The encodings are those of Intel's manual, volume 2."""
    found = packing(linear("m", 64, 320).spec(), [1], AMX)
    assert not isinstance(found, str)
    code = Kernel(found.spec, AMX, rewrite=str).object  # by way of str, so that no emulated text is taken
    products = re.findall(rb"\xc4\xe2([\x42\x4a\x52\x5a\x62\x6a\x72\x7a])\x5c([\xc0-\xff])", code)
    tiles = {(second[0] >> 3 & 7, second[0] & 7, 7 - (first[0] >> 3 & 7)) for first, second in products}
    assert tiles == {(0, 4, 6), (1, 4, 7), (2, 5, 6), (3, 5, 7)}, "sums, rows, columns: no register is renamed"
    assert len(re.findall(rb"\xc4\xe2\x78\x49\xc0", code)) == 1, "tilerelease"
    assert len(re.findall(rb"\xc4\xe2\x78\x49[\x00-\xbf]", code)) == 1, "ldtilecfg of memory"


@pytest.mark.parametrize(
    ("m", "n", "k", "bf16", "bytes_"),
    [
        (1, 768, 768, True, False),  # of bf16 decode shares the panels of prefill
        (4, 768, 768, True, True),
        (1, 768, 40, False, False),  # the second step is three quarters of nothing
        ("m", 768, 768, True, True),
        (128, 768, 768, True, True),
        (128, 64, 9, True, False),
        (128, 64, 3, False, False),  # more is filled and copied than computed
        (1, 10, 64, False, False),  # one chain of products, one vector of columns
        (16, 10, 64, True, False),
        (1024, 64, 48, True, True),
        (0, 64, 64, True, False),
    ],
)
def test_tiles_are_taken_where_they_are_less_work(m: int | str, n: int, k: int, bf16: bool, bytes_: bool) -> None:
    for make, tiles, group in ((linear, bf16, 2), (byte_linear, bytes_, 4)):
        found = packing(make(m, n, k).spec(), [1], AMX)
        assert not isinstance(found, str)
        nest = find(found.spec)
        assert not isinstance(nest, str)
        assert form(nest, AMX) == ("amx" if tiles else "tiles")
        assert dict(found.attributes)["filled"] == (amx_form.step_of(nest) if tiles else group)
        compile_object(Kernel(found.spec, AMX, rewrite=str).text, AMX)


@pytest.mark.parametrize(
    ("k", "bf16", "bytes_"),
    [(9, 32, 64), (16, 16, 16), (24, 24, 24), (48, 24, 48), (144, 24, 48), (200, 32, 40), (768, 32, 64)],
)
def test_steps_leave_no_remainder_where_shorter_ones_do_not(k: int, bf16: int, bytes_: int) -> None:
    for make, step in ((linear, bf16), (byte_linear, bytes_)):
        found = packing(make(128, 64, k).spec(), [1], AMX)
        assert not isinstance(found, str)
        nest = find(found.spec)
        assert not isinstance(nest, str)
        assert amx_form.step_of(nest) == step


@pytest.mark.parametrize("make", [linear, byte_linear])
@pytest.mark.parametrize("k", [4, 16, 24, 48, 144])
def test_short_steps(k: int, make: Callable[..., Case], machine: Machine) -> None:
    runner = machine.runner(make(37, 33, k))
    assert is_amx(runner)
    assert "masked.load" not in runner.kernel.text, "nothing is copied"
    runner.check(2)


def test_decode_and_prefill_share_panels() -> None:
    one, many = (packing(linear(m, 768, 256).spec(), [1], AMX) for m in (1, "m"))
    assert not isinstance(one, str)
    assert not isinstance(many, str)
    assert one.attributes == many.attributes


def test_other_factors_take_no_tiles() -> None:
    """Bytes that are both signed neither."""
    for dtype in ("f32", "f16", "i8"):
        found = packing(replace(linear(64, 64, 64), dtype=dtype).spec(), [1], AMX)
        assert not isinstance(found, str)
        nest = find(found.spec)
        assert not isinstance(nest, str)
        assert form(nest, AMX) == "tiles"


# -- permission -------------------------------------------------------------------------------------------------------
@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[list[tuple[int, int]]]:
    """The requests to the system, which answers as the test's parameter says; caches are those of this test only."""
    calls: list[tuple[int, int]] = []

    def answer(code: int, argument: int) -> int:
        calls.append((code, argument))
        return 0 if request.param else -1

    monkeypatch.setattr(permission, "_arch_prctl", answer)
    permission.tiles_permitted.cache_clear()
    yield calls
    permission.tiles_permitted.cache_clear()


FLAGS = AMX.features | {"avx512_bf16"}


@pytest.mark.parametrize("asked", [True], indirect=True)
def test_the_system_is_asked_once(asked: list[tuple[int, int]]) -> None:
    assert permission.usable(FLAGS) == FLAGS
    assert permission.usable(FLAGS) == FLAGS
    assert asked == [(0x1023, 18)]


@pytest.mark.parametrize("asked", [True], indirect=True)
def test_a_cpu_without_tiles_asks_nothing(asked: list[tuple[int, int]]) -> None:
    assert permission.usable({"avx2", "avx512f"}) == {"avx2", "avx512f"}
    assert asked == []


@pytest.mark.parametrize("asked", [True, False], indirect=True)
def test_the_host_has_tiles_where_the_system_permits(
    asked: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    text = f"processor: 0\nflags\t\t: {' '.join(sorted(FLAGS))}\n"
    monkeypatch.setattr(Path, "read_text", lambda self, encoding: text)
    Target.host.cache_clear()
    try:
        host = Target.host()
    finally:
        Target.host.cache_clear()
    assert asked == [(0x1023, 18)]
    permitted = request.node.callspec.params["asked"]
    assert host.has("amx_bf16") == permitted
    assert host.sums_pairs != permitted, "vdpbf16ps sums pairs where no tiles do"
