"""Kernels for N:M constant factors equal float64's, whatever the sizes, groups, rows and threads; and run where they are faster."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contraction_cases import Case, packed
from kernels import HOST, Kernel
from sparse_cases import Product, with_sparsity
from torch import Tensor

from effc.compiler.codegen.cpu.schedules import Packing, alternatives, packing
from effc.compiler.codegen.cpu.sparse.choice import AnyPlan, plans
from effc.compiler.codegen.cpu.sparse.form import find
from effc.compiler.codegen.cpu.sparse.group_plan import GroupPlan
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.errors import InputError
from effc.compiler.ir.expr import const
from effc.compiler.ir.sparsity import Sparsity
from effc.compiler.ir.spec import KernelSpec, Operand
from effc.runtime.derive import derive
from effc.runtime.dtypes import TORCH_DTYPES
from effc.runtime.group_panels import group_panels

AVX512, AVX2 = Target.named("avx512"), Target.named("avx2")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(11)


def of_groups(rows: int, columns: int, n: int, m: int) -> Tensor:
    """A random matrix of whose each ``m`` neighbours ``n`` are not zero."""
    kept = torch.rand(rows, columns // m, m).argsort(2) < n
    return torch.randn(rows, columns) * kept.view(rows, columns)


def product(weight: Tensor, n: int, m: int, rows: int | None, height: int = 0, **further: Any) -> Product:
    """By a plan of tiles of ``height`` rows, of any where it is 0."""

    def choose(plan: AnyPlan) -> bool:
        return isinstance(plan, GroupPlan) and height in (0, plan.height)

    return Product(weight, Sparsity.of_each(n, m, weight.numel()), rows, choose=choose, **further)


def linear(rows: int | str, outputs: int, inputs: int, n: int = 2, m: int = 4, dtype: str = "f32") -> KernelSpec:
    case = Case((rows, outputs, inputs), 1, (inputs, 0, 1), (0, inputs, 1), (outputs, 1, 0), dtype=dtype)
    return with_sparsity(case.spec(), Sparsity.of_each(n, m, outputs * inputs))


def method(spec: KernelSpec, target: Target = AVX512) -> str:
    """Of the kernel that is chosen for ``spec``."""
    found = packing(spec, [1], target)
    assert isinstance(found, Packing)
    return str(found.spec.schedule.get("sparse", "dense"))


# -- numbers --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("rows", range(1, 10))
def test_few_rows(rows: int) -> None:
    product(of_groups(45, 100, 2, 4), 2, 4, rows).check(threads=1 + rows % 3)


@pytest.mark.parametrize(
    ("outputs", "inputs"), [(2, 4), (1 + 16, 32), (15, 36), (16, 28), (31, 64), (33, 300), (101, 52), (576, 388)]
)
def test_sizes_around_those_of_vectors_and_words(outputs: int, inputs: int) -> None:
    """Columns that fill no panel, groups that fill no word of positions, and fewer than one."""
    product(of_groups(outputs, inputs, 2, 4), 2, 4, 1).check(threads=2)


@pytest.mark.parametrize(
    ("n", "m"), [(1, 2), (1, 4), (3, 4), (1, 8), (2, 8), (4, 8), (7, 8), (2, 16), (4, 16), (8, 16)]
)
def test_other_groups(n: int, m: int) -> None:
    weight = of_groups(37, 13 * m, n, m)
    product(weight, n, m, 1).check(threads=2)
    product(weight, n, m, 3).check()


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8)])
@pytest.mark.parametrize("rows", [1, 2, 5, 8])
def test_avx2(rows: int, n: int, m: int) -> None:
    product(of_groups(45, 9 * m, n, m), n, m, rows, target=AVX2).check(threads=2)


@pytest.mark.parametrize("height", [1, 3, 8])
def test_one_object_serves_every_number_of_rows(height: int) -> None:
    found = product(of_groups(45, 76, 2, 4), 2, 4, None, height)
    for rows in (1, 2, 7, 8, 9, 17, 40):
        found.check(rows, threads=1 + rows % 3)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (1, 8), (3, 8), (4, 16)])
@pytest.mark.parametrize(("rows", "outputs", "groups"), [(1, 45, 25), (3, 64, 9), (6, 17, 1)])
@pytest.mark.parametrize("target", [HOST, AVX512, AVX2], ids=["host", "avx512", "avx2"])
def test_bfloat16(target: Target, rows: int, outputs: int, groups: int, n: int, m: int) -> None:
    """Two values in a word, of which the last may be half empty; the sum of the exact products is rounded once."""
    if target.lanes(4) < m:
        return
    inputs = groups * m
    spec, weight = linear(rows, outputs, inputs, n, m, dtype="bf16"), of_groups(outputs, inputs, n, m).bfloat16()
    form = find(packed(spec, 1), target)
    assert not isinstance(form, str), form
    plan = plans(form, target)[0]
    found = packing(spec, [1], target, {packed(spec, 1).key(): plan.schedule})
    assert isinstance(found, Packing)
    assert found.function == "group_panels"
    held, x = derive(found.function, weight, dict(found.attributes)), torch.randn(rows, inputs).bfloat16()
    assert held.numel() == plan.packed_elements
    memory = torch.full((rows * outputs + 32,), float("nan"), dtype=torch.bfloat16)
    Kernel(found.spec, target)([x, held, memory], threads=2)
    assert memory[rows * outputs :].isnan().all()
    expected = x.double() @ weight.double().T
    bound = 8 * 2.0**-23 * (x.double().abs() @ weight.double().abs().T) + 2.0**-8 * expected.abs() + 1e-30
    assert ((memory[: rows * outputs].view(rows, outputs).double() - expected).abs() <= bound).all()


def test_groups_with_fewer_values_and_none() -> None:
    """Zeros of a group fill its places; negative zero is one."""
    weight = of_groups(40, 64, 2, 4)
    weight[:, :8] = 0
    weight[3:9] = 0
    weight[20:, 5::8] = -0.0
    product(weight, 2, 4, 1).check()
    product(torch.zeros(40, 64), 2, 4, 2).check()


def test_long_sums_are_as_exact_as_eagers() -> None:
    weight, x = of_groups(64, 8192, 2, 4), torch.randn(1, 8192)
    true = x.double() @ weight.double().T
    got, eager = product(weight, 2, 4, 1)(x, torch.zeros(64)), (x @ weight.T).relu()
    ours, theirs = (((y - true.relu()).norm() / true.norm()).item() for y in (got, eager))
    assert ours <= max(2 * theirs, 4 * torch.finfo(torch.float32).eps)


def test_threads_do_not_change_the_bits() -> None:
    found, x, bias = product(of_groups(200, 300, 2, 4), 2, 4, 3), torch.randn(3, 300), torch.randn(200)
    one = found(x, bias)
    assert all(torch.equal(one, found(x, bias, threads)) for threads in (2, 3, 5))


def test_infinity_meets_stored_elements_alone() -> None:
    """Groups that are full store nothing else; a zero that fills one is the weight's own, as in the dense product."""
    weight = torch.zeros(32, 48)
    weight[:, 0::4], weight[:, 1::4] = 1.0, -2.0
    x = torch.randn(1, 48).abs()
    x[0, 6] = float("inf")
    assert product(weight, 2, 4, 1)(x, torch.full((32,), 100.0)).isfinite().all()
    x[0, 5] = -float("inf")
    assert (product(weight, 2, 4, 1)(x, torch.zeros(32)) == float("inf")).all()


def test_nan_is_stored() -> None:
    weight = of_groups(40, 64, 2, 4)
    row, column = weight.nonzero()[0].tolist()
    weight[row, column] = float("nan")
    got = product(weight, 2, 4, 2)(torch.randn(2, 64), torch.zeros(40))
    assert got[:, row].isnan().all()
    assert got.isnan().sum() == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8), (8, 16), (3, 5), (3, 8)])
def test_the_packed_factor_holds_what_its_docstring_says(n: int, m: int, dtype: torch.dtype) -> None:
    """Read back value by value; the matrix is a part of a larger tensor."""
    rows, columns, width, each = 13, 7 * m, 8, 4 // dtype.itemsize
    held = torch.full((3 + rows, columns + 5), float("nan"), dtype=dtype)
    held[3:, :columns] = of_groups(rows, columns, n, m)
    found = group_panels(
        held, offset=3 * (columns + 5), sizes=(rows, columns), strides=(columns + 5, 1), group=(n, m), lanes=4, vectors=2
    )  # fmt: skip
    words, bits = iter(found.view(-1, width, each)), (m - 1).bit_length()
    together, matrix = 32 // (bits * n), torch.zeros(16, columns, dtype=dtype)
    for panel in range(2):
        lanes = torch.arange(panel * width, (panel + 1) * width)
        for first in range(0, 7, together):
            positions = next(words).contiguous().view(torch.int32).flatten().to(torch.int64) & 0xFFFFFFFF
            for number in range(min(together, 7 - first) * n):
                if number % each == 0:
                    values = next(words)
                place = (first + number // n) * m + (positions >> bits * number & (1 << bits) - 1)
                matrix[lanes, place] = values[:, number % each]
    assert next(words, None) is None
    assert torch.equal(matrix[:rows], held[3:, :columns])
    assert not matrix[rows:].any()


# -- weights that change --------------------------------------------------------------------------------------------
def test_a_group_with_more_values_is_refused() -> None:
    weight = of_groups(40, 64, 2, 4)
    found = product(weight, 2, 4, 1)
    found.weight = of_groups(40, 64, 2, 4)
    found.check()
    changed = weight.clone()
    changed[7, 4:8] = torch.tensor([1.0, 0.0, float("nan"), 3.0])
    with pytest.raises(
        InputError, match=r"shape \[40, 64\] has 3 of 4 neighbours that are not zero, and had at most 2"
    ):
        found.derived(changed)


# -- the choice -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("target", [HOST, AVX512, AVX2], ids=["host", "avx512", "avx2"])
def test_few_rows_take_it(target: Target) -> None:
    for rows in (1, 2, 4):
        assert method(linear(rows, 576, 1536), target) == "groups"
        assert method(linear(rows, 4096, 4096), target) == "groups"
    assert method(linear(1, 576, 1536, dtype="bf16"), target) == "groups"


@pytest.mark.parametrize(
    "spec",
    [
        linear(512, 256, 256),  # bound by multiply-adds: no fewer
        linear("s0", 256, 256),  # as many as there may be
        linear(1, 256, 254),  # no whole groups
        linear(1, 256, 256, 7, 8),  # no fewer bytes
        linear(1, 256, 256, dtype="f16"),  # no kernel
        linear(8, 256, 256, dtype="bf16"),  # bound by instructions
        linear(1, 256, 256, 8, 32),  # longer than a vector
        linear(1, 256, 256, 15, 16),  # positions of a group fill more than a word
        with_sparsity(linear(1, 256, 256), Sparsity(1, 1, 256 * 128)),  # no groups
    ],
)
def test_others_stay_dense(spec: KernelSpec) -> None:
    assert method(spec) == "dense"


def test_groups_of_16_need_vectors_as_long() -> None:
    spec = linear(1, 256, 256, 2, 16)
    assert (method(spec), method(spec, AVX2)) == ("groups", "dense")


def test_groups_across_columns_are_none() -> None:
    """``x @ w`` of ``w`` ``[k, n]``, whose groups are of neighbouring columns."""
    case = Case((1, 256, 256), 1, (256, 0, 1), (0, 1, 256), (256, 1, 0))
    spec = with_sparsity(case.spec(), Sparsity.of_each(2, 4, 256 * 256))
    form = find(packed(spec, 1), AVX512)
    assert not isinstance(form, str)
    assert not any(isinstance(plan, GroupPlan) for plan in plans(form, AVX512))


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_both_kernels_are_offered_to_plans(dtype: str) -> None:
    spec = linear(1, 256, 260, dtype=dtype)
    found = packing(spec, [1], HOST)
    assert isinstance(found, Packing)
    specs = alternatives(found.spec, HOST)
    assert specs[0] == found.spec
    assert any(not s.schedule.get("sparse") for s in specs)
    assert len({s.key() for s in specs}) == 1
    weight = of_groups(256, 260, 2, 4).to(TORCH_DTYPES[dtype])
    for one in specs:
        wanted = packing(spec, [1], HOST, {one.key(): one.schedule})
        assert isinstance(wanted, Packing)
        assert wanted.spec == one
        assert derive(wanted.function, weight, dict(wanted.attributes)).numel() == one.operands[1].size.constant
    assert KernelSpec.from_json(found.spec.to_json()) == found.spec


# -- what is known --------------------------------------------------------------------------------------------------
def test_the_encoding_is_upstreams() -> None:
    from torch_mlir import ir

    from effc.compiler.ir.dialect import new_context

    found = Sparsity.of_each(2, 4, 64)
    assert "structured[2, 4]" in found.encoding
    with new_context():
        printed = str(ir.Attribute.parse(found.encoding))
    assert Sparsity.of(printed, 32) == Sparsity.of(found.encoding, 32) == found


def test_another_group_size_at_a_level_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"no kernel knows the sparsity .* or groups structured\[n, m\]"):
        Sparsity.of(
            "#sparse_tensor.encoding<{ map = (i, j) -> (i : dense, j floordiv 4 : dense, j mod 4 : structured[2, 8]) }>",
            3,
        )


@pytest.mark.parametrize("found", [(1, 1, 4, 5, 4), (1, 1, 4, 0, 4), (2, 1, 4, 2, 4), (1, 1, 4, 2, 256)])
def test_numbers_that_are_no_sparsity(found: tuple[int, int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="are no sparsity"):
        Sparsity(*found)


def test_an_operand_keeps_its_groups() -> None:
    operand = Operand("f32", "packed", const(64), Sparsity.of_each(2, 4, 64))
    assert Operand.from_json(operand.to_json()) == operand


def test_what_has_room() -> None:
    two = Sparsity.of_each(2, 4, 64)
    assert two.holds(Sparsity.of_each(1, 4, 64))
    assert not two.holds(Sparsity.of_each(3, 4, 64))
    assert not two.holds(Sparsity(1, 1, 10))
    assert Sparsity(1, 1, 32).holds(two)
