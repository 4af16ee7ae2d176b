"""The order of a packed contraction's loops, and the lines fetched for its epilogue: chosen where they serve, right everywhere."""

from __future__ import annotations

import ctypes
import mmap
from dataclasses import replace

import pytest
import torch
from contraction_cases import Case, Runner, packed
from kernels import HOST
from test_contraction_conv import conv_case

from effc.compiler.codegen.cpu.contraction.rows import split
from effc.compiler.codegen.cpu.schedules import candidates, default_schedule
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.spec import Schedule
from effc.runtime.derive import derive

#: <sys/mman.h>: no access.
PROT_NONE = 0
#: The rules count bytes and columns of the tile: a target of one known width.
AVX512 = Target.named("avx512")


def product(m: int | str, n: int, k: int, dtype: str = "f32", result: str = "") -> Case:
    """A product whose epilogue adds a residual that lies as the output does."""
    return Case((m, n, k), 1, (k, 0, 1), (0, k, 1), (n, 1, 0), dtype, result, bias=(n, 1))


def chosen(case: Case, packs: bool = True) -> Schedule:
    spec = case.spec()
    return default_schedule(packed(spec, 1) if packs else spec, AVX512)


def variants(case: Case) -> list[Schedule]:
    """The schedules of the default's tile."""
    found = candidates(packed(case.spec(), 1), HOST)
    return [s for s in found if (s.get("mr"), s.get("nr")) == (found[0].get("mr"), found[0].get("nr"))]


@pytest.mark.parametrize(
    ("case", "order"),
    [
        (product(6272, 256, 64), "rows"),  # ResNet-50's 1x1 at batch 8: 64 KiB of weights
        (product(1568, 512, 320), "rows"),  # exactly 640 KiB
        (product(1568, 512, 321), "panels"),
        (product(512, 3072, 768), "panels"),  # BERT: 9 MiB
        (product(127, 512, 128), "panels"),  # the rows stay in L2 themselves, and the result is less than the weights
        (product(128, 512, 128), "rows"),
        (product(204, 512, 320), "panels"),
        (product(205, 512, 320), "rows"),  # more than 256 KiB of rows
        (product("s0", 256, 64), "panels"),  # perhaps a single row
        (product("s0", 3072, 768), "panels"),
        (product(6272, 512, 640, "bf16", "f32"), "rows"),  # 640 KiB at two bytes each
        (conv_case(8, 64, 64, (30, 30), (3, 3)), "rows"),
        (conv_case(1, 512, 512, (9, 9), (3, 3)), "panels"),
    ],
)
def test_rows_are_outside_where_the_whole_factor_fits_the_cache(case: Case, order: str) -> None:
    assert chosen(case)["order"] == order


def test_a_factor_that_is_not_packed_is_walked_by_panels() -> None:
    assert chosen(product(6272, 256, 64), packs=False)["order"] == "panels"


@pytest.mark.parametrize(
    ("bias", "out", "streams"),
    [((256, 1), (256, 1, 0), 2), ((0, 1), (256, 1, 0), 1), ((256, 1), (1, 6272, 0), 1), ((0, 1), (1, 6272, 0), 0)],
)
def test_only_what_the_epilogue_reads_and_writes_by_rows_is_fetched(
    bias: tuple[int, int], out: tuple[int, int, int], streams: int
) -> None:
    case = replace(product(6272, 256, 64), bias=bias, out=out)
    first, *others = variants(case)
    assert first["touch"] == (streams > 0)
    without = [s for s in others if s["order"] == first["order"]] or [first]
    fetched, rest = (Runner(case, 1, plan=s).kernel.text.count("llvm.intr.prefetch") for s in (first, *without))
    rows = sum(height for _, height in split(6272, first["mr"]))
    assert fetched - rest == streams * rows * first["nr"] * 4 // 64


def test_a_plan_may_ask_for_either_order() -> None:
    found = variants(product(1031, 67, 61))
    assert {(s["order"], s["touch"]) for s in found} == {("rows", 1), ("panels", 1), (found[0]["order"], 0)}


@pytest.mark.parametrize("sizes", [(1031, 67, 61), (1033, 31, 67), (1025, 129, 64), (7, 33, 5), (1, 17, 1), (0, 16, 3)])
@pytest.mark.parametrize("threads", [1, 2])
def test_every_order_computes_the_same(sizes: tuple[int, int, int], threads: int) -> None:
    for schedule in variants(product(*sizes)):
        runner = Runner(product(*sizes), pack=1, plan=schedule)
        runner.check(threads)
        runner.check(threads, in_place=True)


@pytest.mark.parametrize(("dtype", "result"), [("f64", ""), ("bf16", "f32"), ("f16", "f32"), ("i32", "")])
def test_other_types(dtype: str, result: str) -> None:
    for schedule in variants(case := product(523, 37, 41, dtype, result)):
        Runner(case, pack=1, plan=schedule).check(threads=2)


def test_rows_known_only_at_run_time() -> None:
    for schedule in variants(case := product("s0", 67, 61)):
        runner = Runner(case, pack=1, plan=schedule)
        for rows in (0, 1, 7, 8, 9, 1031):
            runner.check(threads=2, s0=rows)
            runner.check(threads=2, s0=rows, in_place=True)


@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2), (3, 2)])
@pytest.mark.parametrize("batch", [3, "s0"])
def test_convolutions(stride: int, dilation: int, batch: int | str) -> None:
    case = conv_case(batch, 19, 37, (29, 31), (3, 2), stride=stride, dilation=dilation)
    for schedule in variants(case):
        Runner(case, pack=1, plan=schedule).check(threads=2, s0=3)


def test_groups_keep_their_own_panels() -> None:
    case = conv_case(3, 38, 74, (13, 11), (3, 3), groups=2)
    for schedule in variants(case):
        Runner(case, pack=1, plan=schedule).check(threads=2)


def test_lines_beyond_the_output_may_be_unmapped() -> None:
    """The output ends where its page does, and the pages after it are gone: fetching the lines of the last panel must not fault."""
    m, n, k = 5, 17, 8
    page, pages = mmap.PAGESIZE, mmap.mmap(-1, 64 * mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(start + page), ctypes.c_size_t(63 * page), PROT_NONE) == 0
    y = torch.frombuffer(pages, dtype=torch.float32, count=m * n, offset=page - m * n * 4)
    x, w, residual = torch.randn(m, k), torch.randn(n, k), torch.randn(m * n)
    y.copy_(residual)
    runner = Runner(product(m, n, k), pack=1)
    assert runner.kernel.spec.schedule["touch"] == 1
    runner.kernel([x, derive(runner.derivation, w, runner.attributes), y, y])
    expected = x.double() @ w.double().T + residual.view(m, n).double()
    torch.testing.assert_close(y.view(m, n).double(), expected, rtol=1e-6, atol=1e-5)
