"""Matrix products of any size, placement and dtype equal float64's."""

from __future__ import annotations

import itertools

import pytest
from contraction_cases import Case, Runner, Strides

from effc.compiler.codegen.cpu.target import Target

SIZES = (1, 2, 3, 5, 7, 8, 9, 31, 63, 64, 65, 127, 129)

#: M, N, K; strides of x [M, K], w [N, K] or [K, N], y [M, N]
ROW_MAJOR: dict[str, tuple[Strides, Strides]] = {
    "nt": (("s2", 0, 1), (0, "s2", 1)),
    "nn": (("s2", 0, 1), (0, 1, "s1")),
    "tn": ((1, 0, "s0"), (0, 1, "s1")),
}


def triples() -> list[tuple[int, int, int]]:
    """Every size in every place, and the corners of all three."""
    around = [(m, n, k) for s in SIZES for m, n, k in ((s, 65, 9), (7, s, 31), (5, 33, s))]
    return [*around, *itertools.product((0, 1, 129), (0, 1, 129), (0, 1, 5))]


@pytest.mark.parametrize("layout", ROW_MAJOR)
@pytest.mark.parametrize("target", ["host", "avx2"])
def test_one_object_serves_every_size(layout: str, target: str) -> None:
    lhs, rhs = ROW_MAJOR[layout]
    case = Case(("s0", "s1", "s2"), 1, lhs, rhs, ("s1", 1, 0), bias=(0, 1))
    runner = Runner(case, target=Target.named(target))
    for m, n, k in triples():
        runner.check(s0=m, s1=n, s2=k, threads=2)


@pytest.mark.parametrize("n", [2, 16, 31, 64, 80, 129])
@pytest.mark.parametrize("m", [1, 5, 13, 64])
def test_packed_weight(m: int, n: int) -> None:
    case = Case((m, n, 37), 1, (37, 0, 1), (0, 37, 1), (n, 1, 0), bias=(0, 1), relu=True)
    Runner(case, pack=1).check()


def test_packed_weight_with_rows_known_only_at_run_time() -> None:
    runner = Runner(Case(("s0", 100, 70), 1, (70, 0, 1), (0, 70, 1), (100, 1, 0), bias=(0, 1)), pack=1)
    for m in SIZES:
        runner.check(s0=m, threads=2)


def test_weight_given_first_is_packed_and_becomes_the_columns() -> None:
    case = Case((48, 29, 33), 1, (33, 0, 1), (0, 33, 1), (1, 48, 0))
    Runner(case, pack=0).check(threads=2)


@pytest.mark.parametrize("dtype", ["bf16", "f16", "f64", "i8", "i32", "i64", "i1"])
@pytest.mark.parametrize("target", ["host", "avx2"])
def test_other_types(dtype: str, target: str) -> None:
    result = {"i8": "i32", "i1": "i32"}.get(dtype, dtype)
    case = Case(("s0", 45, 23), 1, (23, 0, 1), (0, 23, 1), (45, 1, 0), dtype=dtype, result=result)
    for pack in (None, 1):
        runner = Runner(case, pack=pack, target=Target.named(target))
        for m in (1, 6, 19):
            runner.check(s0=m)


@pytest.mark.parametrize("k", [1, 2, 7, 8, 64])
def test_bf16_pairs_of_any_count_and_stride(k: int) -> None:
    Runner(Case((9, 40, k), 1, (k, 0, 1), (0, k, 1), (40, 1, 0), dtype="bf16", result="f32"), pack=1).check()
    Runner(Case((9, 40, k), 1, (1, 0, 9), (0, k, 1), (40, 1, 0), dtype="bf16", result="f32"), pack=1).check()


def test_batches_with_broadcast_and_permuted_result() -> None:
    # [3, M, K] x [3, K, N] written as [M, 3, N]; then the same with one factor shared by all batches
    case = Case((3, "s0", 33, 20), 1, ("20*s0", 20, 0, 1), (660, 0, 1, 33), (33, 99, 1, 0))
    for runner in (Runner(case), Runner(case, pack=1)):
        for m in (1, 5, 17):
            runner.check(s0=m, threads=2)
    Runner(Case((3, 8, 33, 20), 1, (160, 20, 0, 1), (0, 0, 1, 33), (264, 33, 1, 0))).check()


def test_odd_strides_and_offset() -> None:
    Runner(Case((11, 35, 13), 1, (29, 0, 2), (0, 3, 107), (71, 2, 0), offset=5)).check()


def test_result_without_contiguous_dimension() -> None:
    Runner(Case((11, 35, 13), 1, (13, 0, 1), (0, 13, 1), (3, 40, 0))).check()


def test_two_column_dimensions_and_vector_products() -> None:
    # x [M, K] times w [h, d, K] written as [h, M, d]
    case = Case((7, 3, 40, 12), 1, (12, 0, 0, 1), (0, 480, 12, 1), (40, 280, 1, 0))
    Runner(case).check()
    Runner(case, pack=1).check()
    Runner(Case(("s0", 50), 1, (50, 1), (0, 1), (1, 0))).check(s0=9)  # matrix times vector
    Runner(Case((1, 50), 1, (0, 1), (0, 1), (0, 0))).check()  # dot product


def test_results_do_not_depend_on_the_schedule_of_threads() -> None:
    import torch

    runner = Runner(Case((65, 130, 200), 1, (200, 0, 1), (0, 200, 1), (130, 1, 0)), pack=1)
    x, w = torch.randn(65, 200), torch.randn(130, 200)
    from effc.runtime.derive import derive

    panels = derive("pack_panels", w, runner.attributes)
    one, two = torch.empty(65, 130), torch.empty(65, 130)
    runner.kernel([x, panels, one])
    runner.kernel([x, panels, two], threads=2)
    assert torch.equal(one, two)


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f64", "i8"])
@pytest.mark.parametrize("k", [3, 16, 71, 300])
@pytest.mark.parametrize("m", [1, 3, 40])
def test_weights_in_place(m: int, k: int, dtype: str) -> None:
    """x @ w.T without packing: few rows sum along K, more rows turn blocks of w first."""
    result = {"i8": "i32"}.get(dtype, dtype)
    Runner(Case((m, 50, k), 1, (k, 0, 1), (0, k, 1), (50, 1, 0), dtype=dtype, result=result)).check(threads=2)


def test_sums_over_two_dimensions_in_place() -> None:
    for m in (2, 30):
        Runner(Case((m, 33, 5, 70), 2, (400, 0, 75, 1), (0, 70, 2400, 1), (33, 1, 0, 0))).check(threads=2)


@pytest.mark.parametrize("strides", [(77, 1), (1, 50)], ids=["rows", "columns"])
def test_matrix_times_vector(strides: tuple[int, int]) -> None:
    Runner(Case((50, 77), 1, strides, (0, 1), (1, 0))).check(threads=2)
    Runner(Case((50, 77), 1, (0, 1), strides, (1, 0))).check(threads=2)


@pytest.mark.parametrize("columns", [1000, 1024])
@pytest.mark.parametrize("threads", [1, 2])
def test_rows_of_a_factor_that_lie_pages_apart(columns: int, threads: int) -> None:
    """They are copied next to each other; the columns that a panel lacks are not read."""
    Runner(Case((260, columns, 300), 1, (300, 0, 1), (0, 1, 1024), (columns, 1, 0), relu=True)).check(threads=threads)
