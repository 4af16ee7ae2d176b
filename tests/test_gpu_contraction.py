"""GPU kernels of contractions, in the interpreter, against float64: matrices, batches, convolutions, split sums."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from contraction_cases import Case, Runner
from gpu_interpreted import SM80, SM90, TMA, Kernel, roles_of
from test_contraction_conv import conv_case

from effc.compiler.codegen.gpu.contraction.descriptors import both_described
from effc.compiler.codegen.gpu.contraction.schedule import Tiling, candidates, chosen, cost, shared_bytes
from effc.compiler.codegen.gpu.target import GpuTarget
from effc.compiler.ir.spec import KernelSpec, Schedule


class GpuRunner(Runner):
    """A case as a GPU kernel."""

    def __init__(self, case: Case, target: GpuTarget = SM80, plan: Schedule | None = None) -> None:
        self.case, self.pack = case, None
        spec = case.spec() if plan is None else replace(case.spec(), schedule=plan)
        self.kernel = Kernel(spec, target)  # type: ignore[assignment]


def matmul(m: int | str, n: int | str, k: int | str, dtype: str = "f32", *, relu: bool = True) -> Case:
    """``relu(x w + bias)``, all row-major."""
    bias = (0, 1) if dtype[0] != "i" else None
    return Case((m, n, k), 1, (k, 0, 1), (0, 1, n), (n, 1, 0), dtype, "", bias, relu and bias is not None)


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "i8"])
@pytest.mark.parametrize("sizes", [(16, 16, 16), (17, 31, 70), (70, 33, 1), (2, 130, 65)])
def test_matrices_of_any_size(sizes: tuple[int, int, int], dtype: str) -> None:
    case = matmul(*sizes, dtype)
    GpuRunner(replace(case, result="i32") if dtype == "i8" else case).check()


@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_sizes_known_at_run_time(dtype: str) -> None:
    runner = GpuRunner(matmul("s0", "s1", "s2", dtype))
    for m, n, k in ((1, 1, 1), (65, 40, 33), (130, 17, 100)):
        runner.check(s0=m, s1=n, s2=k)


@pytest.mark.parametrize(
    ("lhs", "rhs", "out"),
    [
        ((1, 0, 20), (0, 30, 1), (50, 1, 0)),  # both transposed
        ((60, 0, 2), (0, 3, 100), (1, 20, 0)),  # gaps, result in columns
    ],
)
def test_any_strides(lhs: tuple[int, ...], rhs: tuple[int, ...], out: tuple[int, ...]) -> None:
    GpuRunner(Case((20, 30, 27), 1, lhs, rhs, out, bias=(0, 1))).check()


def test_batches_of_which_a_factor_has_some() -> None:
    """[b, h, m, k] x [h, k, n]: the second factor is shared by all of ``b``."""
    case = Case((2, 3, 19, 21, 25), 1, (1425, 475, 25, 0, 1), (0, 525, 0, 1, 21), (1197, 399, 21, 1, 0), "f16", "f32")
    GpuRunner(case).check()


def test_offsets_of_operands() -> None:
    GpuRunner(replace(matmul(20, 20, 20), offset=3)).check()


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("channels", [3, 16, 20])
@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions(channels: int, stride: int, last: bool) -> None:
    """Few channels fill blocks of the sum together with the taps; many are blocks of their own, tap after tap."""
    case = conv_case(2, channels, 18, (9, 7), (3, 3), stride=stride, last=last)
    roles = roles_of(case.spec())
    assert len(roles.outer_sums) == (2 if channels >= 16 else 0)
    GpuRunner(case).check()


@pytest.mark.parametrize("groups", [2, 6])
def test_convolutions_in_groups_and_depthwise(groups: int) -> None:
    """A group of one channel in and out is no matrix product: its sums are loops."""
    case = conv_case(1, 6, 6, (8, 9), (3, 3), groups=groups)
    runner = GpuRunner(case)
    assert ("tt.dot" in runner.kernel.text) == (groups == 2)
    runner.check()


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("dtype", ["f16", "f32"])
def test_vectors(rows: int, dtype: str) -> None:
    """One row meets a matrix without tensor cores, by sums along the rows of the weight."""
    case = Case((rows, 40, 700), 1, (700, 0, 1), (0, 700, 1), (40, 1, 0), dtype, bias=(0, 1))
    runner = GpuRunner(case)
    assert ("tt.dot" in runner.kernel.text) == (rows > 1)
    runner.check()


@pytest.mark.parametrize("dtype", ["f64", "i64", "i32", "i1"])
def test_what_tensor_cores_do_not_take_becomes_loops(dtype: str) -> None:
    result = {"i1": "i32"}.get(dtype, dtype)
    runner = GpuRunner(replace(matmul(9, 10, 11, dtype), result=result, bias=None, relu=False))
    assert "tt.dot" not in runner.kernel.text
    runner.check()


@pytest.mark.parametrize("unsigned", [0, 1])
@pytest.mark.parametrize("sizes", [(9, 10, 40), (33, 70, 129), (2, 3, 1)])
def test_unsigned_bytes(unsigned: int, sizes: tuple[int, int, int]) -> None:
    """Tensor cores multiply them less 128, as signed ones."""
    _, n, k = sizes
    runner = GpuRunner(Case(sizes, 1, (k, 0, 1), (0, 1, n), (n, 1, 0), "i8", "i32", unsigned=unsigned))
    assert "tt.dot" in runner.kernel.text
    runner.check()


def test_a_product_of_two_unsigned_factors() -> None:
    m, n, k = 19, 21, 70
    spec = Case((m, n, k), 1, (k, 0, 1), (0, 1, n), (n, 1, 0), "i8", "i32", unsigned=0).spec()
    body = tuple(replace(i, op="arith.extui") if i.op == "arith.extsi" else i for i in spec.body)
    x, w = (torch.randint(0, 256, shape, dtype=torch.uint8) for shape in ((m, k), (k, n)))
    y = torch.zeros(m * n, dtype=torch.int32)
    kernel = Kernel(replace(spec, body=body), SM90)
    assert "tt.dot" in kernel.text
    kernel([x.view(torch.int8).flatten(), w.view(torch.int8).flatten(), y])
    assert torch.equal(y.view(m, n).long(), x.long() @ w.long())


@pytest.mark.parametrize("split", [2, 8])
def test_a_sum_in_parts(split: int) -> None:
    """Parts go through scratch memory, and the epilogue runs once, on their sum; some parts have nothing left to do."""
    for k in (300, 65):
        case = matmul(20, 33, k, "f16")
        plan = replace(chosen(roles_of(case.spec()), SM80), split=split).schedule()
        runner = GpuRunner(case, plan=plan)
        assert len(runner.kernel.emitted.launches) == 2  # type: ignore[attr-defined]
        runner.check()


def test_few_rows_and_a_long_sum_are_split_by_themselves() -> None:
    roles = roles_of(matmul(16, 256, 8192, "f16").spec())
    assert chosen(roles, SM90).split > 1
    assert chosen(roles_of(matmul(4096, 4096, 4096, "f16").spec()), SM90).split == 1


def test_large_matrices_take_large_tiles() -> None:
    tiling = chosen(roles_of(matmul(4096, 4096, 4096, "f16").spec()), SM90)
    assert tiling.bm * tiling.bn >= 128 * 128


def test_a_schedule_that_names_all_is_taken_without_counting(monkeypatch: pytest.MonkeyPatch) -> None:
    roles = roles_of(replace(matmul(70, 90, 100, "f16").spec(), schedule=Tiling(32, 64, 32, stages=2).schedule()))
    name = "effc.compiler.codegen.gpu.contraction.schedule._tilings"
    monkeypatch.setattr(name, lambda roles, target: pytest.fail("all tilings are counted"))
    assert chosen(roles, SM80) == Tiling(32, 64, 32, stages=2)


@pytest.mark.parametrize("target", [SM80, SM90])
def test_every_candidate_fits_shared_memory_and_agrees(target: GpuTarget) -> None:
    case = matmul(70, 90, 100, "f16")
    roles = roles_of(case.spec())
    offered = candidates(roles, target, 6)
    assert len(offered) == 6
    for schedule in offered:
        assert (
            shared_bytes(roles, chosen(roles_of(replace(case.spec(), schedule=schedule)), target))
            <= target.shared_bytes
        )
        GpuRunner(case, target, schedule).check()


@pytest.mark.parametrize("sums", [1, 5])
def test_a_factor_that_does_not_vary_along_the_sum(sums: int) -> None:
    """It counts for the steps that there are, not for all of a block."""
    GpuRunner(Case((20, 30, sums), 1, (1, 0, 0), (0, sums, 1), (30, 1, 0))).check()


def test_tf32_is_taken_where_it_is_allowed() -> None:
    spec = matmul(32, 32, 64).spec()
    assert "inputPrecision = 2" in Kernel(spec, SM80).text
    assert "inputPrecision = 0" in Kernel(spec, replace(SM80, tf32=True)).text
    x, w, bias, y = torch.randn(2048), torch.randn(2048), torch.zeros(32), torch.zeros(1024)
    Kernel(spec, replace(SM80, tf32=True))([x, w, bias, y])
    expected = (x.view(32, 64) @ w.view(64, 32)).relu().reshape(-1)
    assert 1e-5 < (y - expected).abs().max() < 0.1, "factors have ten bits"


def test_tf32_is_counted_by_its_own_rate() -> None:
    """So that its tiles are those of tensor cores, which loads keep waiting sooner."""
    roles = roles_of(matmul(4096, 4096, 4096).spec())
    tiling = chosen(roles, SM90)
    assert cost(roles, replace(SM90, tf32=True), tiling) < cost(roles, SM90, tiling) / 2
    assert cost(roles, replace(SM90, tf32_convolutions=True), tiling) == cost(roles, SM90, tiling)


def test_nan_and_infinity_reach_their_rows_alone() -> None:
    case = matmul(33, 20, 40, relu=False)
    x, w, y = torch.randn(33, 40), torch.randn(40, 20), torch.zeros(33, 20)
    x[1, 2], x[5, 39] = float("nan"), float("inf")
    Kernel(case.spec())([x.reshape(-1), w.reshape(-1), torch.zeros(20), y.reshape(-1)])
    torch.testing.assert_close(y, x @ w, rtol=1e-4, atol=1e-4, equal_nan=True)


# -- factors by descriptors -------------------------------------------------------------------------------------------
DESCRIBED = [
    Case((33, 70, 64), 1, (64, 0, 1), (0, 64, 1), (70, 1, 0), "f16", "f32"),  # both along the sum
    Case(
        (33, 72, 50), 1, (56, 0, 1), (0, 1, 72), (72, 1, 0), "bf16", "f32"
    ),  # the second along the columns, gaps between rows
    Case((40, 72, 17), 1, (1, 0, 40), (0, 1, 72), (72, 1, 0), "f16", bias=(0, 1), relu=True),  # neither
    Case((3, 18, 24, 40), 1, (720, 40, 0, 1), (960, 0, 40, 1), (432, 24, 1, 0), "f16", "f32"),  # a batch
    Case((3, 18, 24, 40), 1, (720, 40, 0, 1), (0, 0, 40, 1), (432, 24, 1, 0), "f16", "f32"),  # which one factor has
]


def matrices_of(case: Case, **parameters: int) -> KernelSpec:
    tiling = replace(chosen(roles_of(case.spec()), TMA), bm=16, bn=16, bk=16, stages=2, **parameters)
    return replace(case.spec(), schedule=tiling.schedule())


@pytest.mark.parametrize("case", DESCRIBED, ids=str)
def test_factors_that_descriptors_copy(case: Case) -> None:
    """Zeros come from outside of a matrix; nothing is masked but what is stored."""
    assert both_described(roles_of(case.spec())) is not None
    runner = GpuRunner(case, TMA)
    assert runner.kernel.text.count("tt.descriptor_load") == 2
    runner.check()


@pytest.mark.parametrize("split", [1, 2])
@pytest.mark.parametrize("processors", [1, 3, 7, 1000])
def test_programs_that_take_tile_after_tile(processors: int, split: int) -> None:
    """Also of parts of the sum, as a schedule that says no more than ``split`` may get."""
    target = replace(TMA, processors=processors)
    for case in DESCRIBED[:3]:
        runner = GpuRunner(case, target, matrices_of(case, descriptors=1, persistent=1, split=split).schedule)
        launched, *rest = runner.kernel.emitted.launches  # type: ignore[attr-defined]
        assert launched.grid.constant is not None
        assert launched.grid.constant <= processors
        assert len(rest) == split - 1
        runner.check()


def test_descriptors_and_a_sum_in_parts() -> None:
    case = DESCRIBED[0]
    runner = GpuRunner(case, TMA, matrices_of(case, descriptors=1, persistent=0, split=2).schedule)
    assert "tt.descriptor_load" in runner.kernel.text
    runner.check()


def test_sizes_known_at_run_time_and_strides_before() -> None:
    runner = GpuRunner(Case(("s0", 40, 64), 1, (64, 0, 1), (0, 64, 1), (40, 1, 0), "f16"), TMA)
    assert "tt.descriptor_load" in runner.kernel.text
    for m in (1, 65, 200):
        runner.check(s0=m)


@pytest.mark.parametrize(
    "case",
    [
        matmul(20, 30, 33, "f16"),  # rows begin at no multiple of 16 bytes
        replace(matmul(24, 32, 64, "f16"), offset=3),
        matmul(24, 32, 64, "f32"),
        replace(matmul(24, 32, 64, "i8"), result="i32"),
        matmul("s0", "s1", "s2", "f16"),
        conv_case(1, 16, 16, (9, 7), (3, 3), dtype="f16"),
        Case((20, 24, 32), 1, (32, 0, 1), (0, 64, 2), (24, 1, 0), "f16"),  # no neighbours
    ],
    ids=str,
)
def test_what_no_descriptor_says_is_read_by_pointers(case: Case) -> None:
    assert both_described(roles_of(case.spec())) is None
    assert "tt.descriptor_load" not in Kernel(case.spec(), TMA).text


def test_descriptors_need_the_hardware_and_aligned_memory() -> None:
    spec = DESCRIBED[0].spec()
    assert "tt.descriptor_load" not in Kernel(spec, SM90).text
    assert "tt.descriptor_load" not in Kernel(spec, TMA, aligned=False).text
    with pytest.raises(ValueError, match=r"sm_80\+tma.*begin with sm_90"):
        GpuTarget.named("sm_80+tma")


def test_many_tiles_are_taken_by_few_programs() -> None:
    assert chosen(roles_of(matmul(8192, 8192, 4096, "f16").spec()), TMA).persistent
    assert not chosen(roles_of(matmul(128, 256, 4096, "f16").spec()), TMA).persistent


# -- the last wave ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize("processors", [4, 7])
@pytest.mark.parametrize("described", [0, 1])
def test_tiles_of_a_last_wave_in_parts(described: int, processors: int, parts: int) -> None:
    """Of 15 tiles the last 3 or 1 are cut along the sum; each result has its epilogue once."""
    target = replace(TMA, processors=processors)
    for case in (
        Case((40, 72, 88), 1, (88, 0, 1), (0, 88, 1), (72, 1, 0), "f16", "f32", (0, 1), True),
        matmul(33, 70, 65, "f16"),
    ):
        tiling = Tiling(16, 16, 16, stages=2, tail=parts)
        if described and both_described(roles_of(case.spec())):
            tiling = replace(tiling, descriptors=1, persistent=1)
        runner = GpuRunner(case, target, tiling.schedule())
        launches = runner.kernel.emitted.launches  # type: ignore[attr-defined]
        rest = 15 % processors
        assert [one.grid.constant for one in launches[1:]] == [rest * parts, rest]
        runner.check()


def test_a_last_wave_of_few_tiles_is_cut_where_that_is_counted_to_pay() -> None:
    """144 tiles on 132 processors are two waves, of which the second is 12 tiles."""
    roles = roles_of(matmul(12 * 128, 12 * 256, 8192, "f16").spec())
    assert chosen(roles, TMA).tail > 1
    assert chosen(roles_of(matmul(12 * 128, 11 * 256, 8192, "f16").spec()), TMA).tail == 1, "one wave"
    assert chosen(roles_of(matmul("s0", 12 * 256, 8192, "f16").spec()), TMA).tail == 1
