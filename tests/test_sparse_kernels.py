"""Kernels for sparse constant factors equal float64's, whatever the sizes, layouts, patterns and threads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from contraction_cases import Case, Runner, packed
from kernels import HOST
from sparse_cases import Full, Product, pruned, sparsity, with_sparsity
from test_contraction_conv import conv_case

from effc.compiler.codegen.cpu.schedules import Packing, alternatives, packing
from effc.compiler.codegen.cpu.sparse.choice import AnyPlan, chosen, offered
from effc.compiler.codegen.cpu.sparse.form import find
from effc.compiler.codegen.cpu.sparse.plan import Plan
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.errors import InputError
from effc.compiler.ir.sparsity import Sparsity
from effc.compiler.ir.spec import KernelSpec
from effc.runtime.derive import derive
from effc.runtime.sparse_panels import stored_blocks

PATTERNS = ((1, 1), (4, 1), (16, 1), (32, 1), (1, 16), (1, 4), (4, 4), (3, 2))
#: Of the dense factor and of the result.
LAYOUTS = {"channels last": (False, True), "planes": (True, False), "turned": (False, False), "back": (True, True)}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(3)


def methods(pattern: tuple[int, int], by_columns: bool) -> list[str]:
    rows, columns = pattern
    found = ["rows"] if rows <= 16 else []
    found += ["blocks"] if columns >= 4 else []
    return found + (["columns"] if rows % 16 == 0 and by_columns else [])


def by(method: str) -> Callable[[AnyPlan], bool]:
    return lambda plan: plan.method == method


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_one_object_serves_every_number_of_rows(pattern: tuple[int, int], layout: str) -> None:
    planes, by_columns = LAYOUTS[layout]
    for method in methods(pattern, by_columns):
        product = Product(
            pruned(45, 77, *pattern, 0.3), pattern, None, planes=planes, by_columns=by_columns,
            choose=by(method),
        )  # fmt: skip
        for m in (1, 2, 15, 16, 17, 63, 127, 128, 129, 300):
            product.check(m, threads=1 + m % 3)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("m", [1, 7, 16, 49, 131])
def test_known_numbers_of_rows(m: int, layout: str) -> None:
    planes, by_columns = LAYOUTS[layout]
    for pattern in ((1, 1), (16, 1), (1, 16)):
        for method in methods(pattern, by_columns):
            if m > 1 or method == "columns":  # a single row is no dimension
                Product(
                    pruned(33, 64, *pattern, 0.2), pattern, m, planes=planes, by_columns=by_columns,
                    choose=by(method),
                ).check(threads=2)  # fmt: skip


@pytest.mark.parametrize("pattern", [(1, 1), (4, 1), (1, 16)])
@pytest.mark.parametrize("planes", [False, True])
def test_sums_in_parts(planes: bool, pattern: tuple[int, int]) -> None:
    """Long sums are walked part by part; the last may be shorter."""
    Product(
        pruned(40, 611, *pattern, 0.2),
        pattern,
        100,
        planes=planes,
        by_columns=not planes,
        choose=lambda p: isinstance(p, Plan) and p.parts > 1,
    ).check(threads=2)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("pattern", [(1, 1), (4, 1), (1, 16)])
def test_few_rows_are_left_for_the_last_vector(pattern: tuple[int, int], parts: int) -> None:
    """Up to half a vector of 16, and one more; the sum in one part and in several."""
    for m in (40, 41):
        product = Product(
            pruned(40, 300, *pattern, 0.2), pattern, m,
            choose=lambda p: isinstance(p, Plan) and not p.in_place and p.parts >= parts and p.height > 1,
        )  # fmt: skip
        assert isinstance(product.plan, Plan)
        assert (product.plan.rest < product.plan.lanes) == (product.plan.lanes == 16 and m == 40)
        product.check(threads=2)


@pytest.mark.parametrize("shares", [1, 3])
def test_runs_of_columns_are_whole_groups_but_for_the_last(shares: int) -> None:
    """Here almost all blocks are in the last columns, and one run may be empty."""
    weight = pruned(90, 80, 1, 16, 0.1)
    weight[64:] = torch.randn(26, 80)
    plan = Product(weight, (1, 16), 20, choose=by("blocks")).plan
    assert isinstance(plan, Plan)
    plan = replace(plan, shares=shares)
    function, attributes = plan.derivation(0)
    words = derive(function, weight, attributes).view(torch.int32)
    runs = words[: shares + 1].tolist()
    assert runs[0] == 0
    assert runs[-1] == 90
    assert sorted(runs) == runs
    assert all(end % plan.group == 0 for end in runs[:-1])
    lists = words[plan.starts_at : plan.starts_at + plan.parts * shares + 1].tolist()
    assert lists[0] == 0
    assert lists[-1] == plan.form.sparsity.stored
    counts = stored_blocks(weight, 1, 16)
    for share in range(shares):
        for part in range(plan.parts):
            number = share * plan.parts + part
            assert lists[number + 1] - lists[number] == counts[runs[share] : runs[share + 1], part].sum()


@pytest.mark.parametrize("method", ["rows", "blocks"])
def test_large_results_and_the_next_rows_are_fetched_ahead(method: str) -> None:
    """Which reads nothing, also where nothing is: behind the last row."""
    pattern = (1, 1) if method == "rows" else (1, 16)
    for m, fetched in ((1100, True), (200, False), (None, True)):
        product = Product(pruned(40, 64, *pattern, 0.2), pattern, m, choose=by(method))
        assert ("prefetch" in product.kernel.text) == fetched
        product.check(1100, threads=2) if m is None else product.check(threads=2)


def test_places_that_32_bits_do_not_hold_are_counted_at_run_time() -> None:
    for m, said in ((2**22, True), (2**23, False)):
        spec = packed(with_sparsity(_linear(m, 40, 256, planes=True, by_columns=False), Sparsity(1, 1, 2000)), 1)
        form = find(spec, HOST)
        assert not isinstance(form, str)
        plan = Plan(form, HOST.lanes(4), "columns", 4, 1, 1, 1)
        assert plan.step == (m if said else None)


@pytest.mark.parametrize(("n", "k"), [(2, 16), (3, 17), (16, 31), (17, 160), (101, 103)])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_blocks_that_do_not_divide_the_weight(n: int, k: int, pattern: tuple[int, int]) -> None:
    Product(pruned(n, k, *pattern, 0.5), pattern, 37).check(threads=2)


@pytest.mark.parametrize("pattern", [(1, 1), (16, 1), (1, 16)])
@pytest.mark.parametrize("density", [0.0, 1.0])
def test_without_a_zero_and_with_nothing_else(density: float, pattern: tuple[int, int]) -> None:
    product = Product(pruned(48, 96, *pattern, density), pattern, 50)
    assert product.plan.form.sparsity.elements == density * 48 * 96
    product.check(threads=2)


@pytest.mark.parametrize("method", ["rows", "blocks"])
def test_columns_of_zeros_alone_beside_full_ones(method: str) -> None:
    """Shares hold about as many stored blocks each: here the first few columns hold almost all."""
    weight = pruned(96, 64, 1, 16, 0.05)
    weight[7:40] = 0
    weight[:6] = torch.randn(6, 64)
    Product(weight, (1, 16), 30, choose=lambda plan: plan.method == method).check(threads=4)


@pytest.mark.parametrize("pattern", [(1, 1), (8, 1), (1, 8), (4, 4), (16, 1), (1, 16)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_avx2(layout: str, pattern: tuple[int, int]) -> None:
    planes, by_columns = LAYOUTS[layout]
    target, weight = Target.named("avx2"), pruned(45, 77, *pattern, 0.3)
    if pattern == (16, 1) and not by_columns:
        form = find(
            packed(with_sparsity(_linear(50, 45, 77, planes, by_columns), sparsity(weight, *pattern)), 1), target
        )
        assert not isinstance(form, str), "there is a form, but no register tile of 16 columns"
        return
    Product(weight, pattern, 50, planes=planes, by_columns=by_columns, target=target).check(threads=2)


def _linear(m: int, n: int, k: int, planes: bool = False, by_columns: bool = True) -> KernelSpec:
    lhs, out = ((1, 0, m) if planes else (k, 0, 1)), ((n, 1, 0) if by_columns else (1, m, 0))
    return Case((m, n, k), 1, lhs, (0, k, 1), out).spec()


def test_long_sums_are_as_exact_as_eagers() -> None:
    weight, x = pruned(64, 8192, 16, 1, 0.5), torch.randn(40, 8192)
    true = x.double() @ weight.double().T
    eager = ((x @ weight.T) - true).norm() / true.norm()
    for pattern in ((1, 1), (16, 1)):
        product = Product(weight, pattern, 40)
        got = product(x, torch.zeros(64))
        positive = true > 0
        ours = ((got - true)[positive].norm() / true.norm()).item()
        assert ours <= max(2 * eager, 4 * torch.finfo(torch.float32).eps)


def test_threads_do_not_change_the_bits() -> None:
    for pattern in ((1, 1), (16, 1), (1, 16)):
        product = Product(pruned(200, 300, *pattern, 0.2), pattern, 90)
        x, bias = torch.randn(90, 300), torch.randn(200)
        one = product(x, bias)
        assert all(torch.equal(one, product(x, bias, threads)) for threads in (2, 3, 5))


def test_infinity_meets_stored_elements_alone() -> None:
    """What a stored zero would make NaN of, an absent one leaves out; of what is stored nothing is lost."""
    weight = torch.zeros(32, 48)
    weight[3, 5] = -2.0
    x = torch.randn(20, 48)
    x[4, 5], x[6, 7] = -float("inf"), float("inf")
    for planes in (False, True):
        got = Product(weight, (1, 1), 20, planes=planes)(x, torch.zeros(32))
        assert got[4, 3] == float("inf")
        assert got.isfinite().sum() == got.numel() - 1


@pytest.mark.parametrize("pattern", [(1, 1), (16, 1), (1, 16)])
@pytest.mark.parametrize("last", [True, False], ids=["channels last", "planes"])
def test_convolutions_of_several_images(last: bool, pattern: tuple[int, int]) -> None:
    """Images and, at a stride, their lines are loops outside the tile."""
    strides = (1, 2) if last else (1,)  # of planes at a stride nothing is contiguous
    for stride in strides:
        case = Full.of(conv_case(3, 40, 64, (9, 11), (1, 1), stride=stride, last=last), pattern)
        for plan in offered(packed(case.spec(), 1), HOST)[:3]:
            Runner(case, pack=1, plan=plan).check(threads=3)


def test_images_whose_size_and_number_are_known_only_at_run_time() -> None:
    planes = Case(("n", 40, "s", 64), 1, ("64*s", 0, 1, "s"), (0, 64, 0, 1), ("40*s", "s", 1, 0), bias=(0, 1, 0, 0))
    case = Full.of(planes, (1, 1))
    runner = Runner(case, pack=1, plan=offered(packed(case.spec(), 1), HOST)[0])
    for n, s in ((0, 5), (1, 1), (2, 49), (3, 130)):
        runner.check(n=n, s=s, threads=2)


# -- the choice -----------------------------------------------------------------------------------------------------
def test_chosen_where_counted_to_be_faster() -> None:
    n, k = 256, 256
    for density, is_sparse in ((0.1, True), (0.3, True), (0.95, False)):
        spec = with_sparsity(_linear(196, n, k), Sparsity(1, 1, int(density * n * k)))
        found = packing(spec, [1], HOST)
        assert isinstance(found, Packing)
        assert (found.function == "sparse_panels") == is_sparse
    plain = packing(_linear(196, n, k), [1], HOST)
    assert isinstance(plain, Packing)
    assert plain.function == "pack_panels"


def test_the_count_is_trusted_less_where_multiply_adds_are_cheap() -> None:
    """Of a core of Intel's, which has the base of AVX-512, and of one of AMD's."""
    spec = packed(with_sparsity(_linear(3136, 128, 128), Sparsity(1, 1, 8192)), 1)
    features = Target.named("avx512").features | {"avx512_bf16"}
    assert chosen(spec, Target("intel", 64, features | {"amx_bf16"}), None) is None
    assert chosen(spec, Target("amd", 64, features), None) is not None


def test_few_rows_stay_dense_where_lanes_would_be_empty() -> None:
    found = packing(with_sparsity(_linear(1, 256, 256), Sparsity(1, 1, 6000)), [1], HOST)
    assert isinstance(found, Packing)
    assert found.function == "pack_panels"


def test_both_kernels_are_offered_to_plans() -> None:
    spec = with_sparsity(_linear(196, 256, 256), Sparsity(1, 1, 6000))
    found = packing(spec, [1], HOST)
    assert isinstance(found, Packing)
    specs = alternatives(found.spec, HOST)
    assert specs[0] == found.spec
    dense = [s for s in specs if not s.schedule.get("sparse")]
    assert dense
    assert len({s.key() for s in specs}) == 1
    for one in (dense[0], specs[1]):
        wanted = packing(spec, [1], HOST, {one.key(): one.schedule})
        assert isinstance(wanted, Packing)
        assert wanted.spec == one
    assert KernelSpec.from_json(found.spec.to_json()) == found.spec


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (
            Case((64, 48, 32), 1, (32, 0, 1), (0, 40, 1), (48, 1, 0)).spec(),
            "the sparse factor is only a part of its tensor",
        ),
        (
            Case((64, 48, 32), 1, (70, 0, 2), (0, 32, 1), (48, 1, 0)).spec(),
            "neither the rows nor the sum of the dense factor are contiguous",
        ),
        (
            Case((64, 48, 32), 1, (32, 0, 1), (0, 32, 1), (96, 2, 0)).spec(),
            "neither the rows nor the columns of the result are contiguous",
        ),
        (Case((64, 48, 32), 1, (32, 0, 1), (0, 32, 1), (48, 1, 0), dtype="bf16").spec(), "only float32"),
        (
            conv_case(1, 32, 64, (9, 9), (3, 3), groups=2).spec(),
            "neither a product of two matrices nor a convolution: groups, or a border",
        ),
        (
            conv_case(1, 16, 32, (9, 9), (3, 3), last=False).spec(),
            "neither the rows nor the columns of the result are contiguous",
        ),
    ],
)
def test_what_they_do_not_serve_says_why(spec: KernelSpec, reason: str) -> None:
    assert find(packed(with_sparsity(spec, Sparsity(1, 1, 10)), 1), HOST) == reason


def test_a_weight_that_is_read_transposed() -> None:
    """``x @ w`` of a weight ``[k, n]``: blocks of its rows are blocks along the sum."""
    n, k = 48, 64
    weight = pruned(k, n, 16, 1, 0.3)
    case = Case((50, n, k), 1, (k, 0, 1), (0, 1, n), (n, 1, 0))
    form = find(packed(with_sparsity(case.spec(), sparsity(weight, 16, 1)), 1), HOST)
    assert not isinstance(form, str)
    assert (form.sparsity.rows, form.sparsity.columns) == (1, 16)


# -- weights that change --------------------------------------------------------------------------------------------
def test_a_weight_with_fewer_zeros_is_refused() -> None:
    weight = pruned(40, 64, 4, 1, 0.3)
    product = Product(weight, (4, 1), 33)
    product.weight = weight * 3
    product.check()
    product.weight = weight * (torch.arange(40) // 4 % 2)[:, None]
    product.check()
    changed = weight.clone()
    changed[(weight == 0).nonzero()[0].tolist()[0]] = 1.0
    with pytest.raises(InputError, match=r"shape \[40, 64\] has \d+ blocks of 4 x 1 elements that are not zero"):
        product.derived(changed)


def test_nan_is_stored() -> None:
    weight = pruned(40, 64, 1, 1, 0.3)
    stored = weight.nonzero()[0].tolist()
    weight[stored[0], stored[1]] = float("nan")
    got = Product(weight, (1, 1), 33)(torch.randn(33, 64), torch.zeros(40))
    assert got[:, stored[0]].isnan().all()
    assert got.isnan().sum() == 33


@pytest.mark.parametrize("pattern", [(1, 1), (4, 1), (1, 16), (2, 3)])
def test_the_encoding_is_upstreams(pattern: tuple[int, int]) -> None:
    from torch_mlir import ir

    from effc.compiler.ir.dialect import new_context

    found = Sparsity(*pattern, 7)
    with new_context():
        printed = str(ir.Attribute.parse(found.encoding))
    assert Sparsity.of(printed, 7) == Sparsity.of(found.encoding, 7) == found


def test_another_encoding_is_an_error() -> None:
    with pytest.raises(ValueError, match="no kernel knows the sparsity"):
        Sparsity.of("#sparse_tensor.encoding<{ map = (d0, d1) -> (d0 : compressed, d1 : compressed) }>", 3)
