"""What follows the sums of a sparse product before they are transposed, where it is of the column alone; else after."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from contraction_cases import Case, Runner, packed
from kernels import HOST
from sparse_cases import Full, Product, pruned
from test_contraction_conv import conv_case

from effc.compiler.codegen.cpu.body import Body
from effc.compiler.codegen.cpu.sparse.choice import plans
from effc.compiler.codegen.cpu.sparse.early import Early
from effc.compiler.codegen.cpu.sparse.form import find
from effc.compiler.codegen.cpu.sparse.plan import Plan
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.codegen.cpu.text import Builder
from effc.compiler.ir.spec import KernelSpec, Schedule

#: Strides of what is added to a product of 50 rows and 45 columns.
COLUMN, ROW, BOTH = (0, 1, 0), (1, 0, 0), (45, 1, 0)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(11)


def product(bias: tuple[int, ...] | None, *, relu: bool = False, pattern: tuple[int, int] = (1, 1)) -> Full:
    return Full.of(Case((50, 45, 40), 1, (40, 0, 1), (0, 40, 1), (45, 1, 0), bias=bias, relu=relu), pattern)


def early(spec: KernelSpec) -> bool:
    form = find(packed(spec, 1), HOST)
    assert not isinstance(form, str), form
    b = Builder()
    body = Body(b, form.nest.spec, HOST, lambda operand: b.index(operand), {})
    return Early.of(b, form.nest, body) is not None


def by_rows(case: Case, target: Target = HOST) -> Schedule:
    form = find(packed(case.spec(), 1), target)
    assert not isinstance(form, str), form
    return next(p.schedule for p in plans(form, target) if p.method in ("rows", "window"))


@pytest.mark.parametrize(
    ("bias", "relu", "expected"),
    [(COLUMN, False, True), (COLUMN, True, True), (None, True, True), (None, False, False), (ROW, True, False),
     (BOTH, False, False), (BOTH, True, False)],
)  # fmt: skip
def test_what_is_of_the_column_alone_is_done_before_the_transpose(
    bias: tuple[int, ...] | None, relu: bool, expected: bool
) -> None:
    case = product(bias, relu=relu)
    assert early(case.spec()) == expected
    Runner(case, pack=1, plan=by_rows(case)).check(threads=2)


def test_two_results_are_written_after_it() -> None:
    """The second is the sum itself."""
    spec = product(COLUMN).spec()
    assert early(spec)
    *rest, store = spec.body
    twice = (*rest, store, replace(store, args=(2,)))
    assert not early(replace(spec, body=twice))


@pytest.mark.parametrize("target", ["host", "avx2"])
@pytest.mark.parametrize("pattern", [(4, 1), (3, 2)])
def test_blocks_that_reach_beyond_the_last_column(pattern: tuple[int, int], target: str) -> None:
    """Their columns have no bias to read."""
    case, chosen = product(COLUMN, relu=True, pattern=pattern), Target.named(target)
    Runner(case, pack=1, target=chosen, plan=by_rows(case, chosen)).check(threads=2)


def test_windows() -> None:
    case = Full.of(replace(conv_case(1, 20, 24, (9, 11), (3, 3)), relu=True), (1, 1))
    assert early(case.spec())
    Runner(case, pack=1, plan=by_rows(case)).check(threads=2)


def test_sums_in_parts_wait_without_it() -> None:
    """It is done once, with the last part."""
    weight = pruned(40, 611, 1, 1, 0.2)
    Product(weight, (1, 1), 100, choose=lambda p: isinstance(p, Plan) and p.method == "rows" and p.parts > 1).check()


def test_nan_and_infinity_pass_it() -> None:
    weight = torch.zeros(32, 24)
    weight[3, 5], weight[4, 6] = 2.0, 1.0
    x, bias = torch.randn(20, 24), torch.randn(32)
    x[4, 5], x[6, 6] = float("inf"), float("nan")
    got = Product(weight, (1, 1), 20, choose=lambda plan: plan.method == "rows")(x, bias)
    assert got[4, 3] == float("inf")
    assert got[6, 4].isnan()
    assert got.isfinite().sum() == got.numel() - 2
