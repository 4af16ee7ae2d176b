"""Kernels that leave out weights as zeros come equal float64's products, whatever the sizes, zeros and threads."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from contraction_cases import Case, packed
from kernels import HOST, Kernel, instr
from torch import Tensor

from effc.compiler.codegen.cpu.schedules import Packing, alternatives, packing
from effc.compiler.codegen.cpu.skipping import choice
from effc.compiler.codegen.cpu.skipping.form import MOST_LISTED, MOST_SUMMED, find
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.expr import as_expr
from effc.compiler.ir.spec import SHARE, Dim, Instr, KernelSpec, Operand
from effc.runtime.derive import derive

pytestmark = pytest.mark.skipif(HOST.vector_bytes < 64, reason="lists are compressed by AVX-512")

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
SIZES = [(2, 3), (16, 16), (17, 31), (100, 77), (129, 515), (301, 48), (576, 1536), (960, 576)]


@pytest.fixture(autouse=True)
def _any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a list costs more than it saves."""
    for cycles in ("LIST_CYCLES", "RUN_CYCLES", "ENTRY_CYCLES"):
        monkeypatch.setattr(choice, cycles, 0)
    monkeypatch.setattr(Target, "gaps", 1.0)


def by_inputs(n: int, k: int, offset: int = 0, rows: int | str = 1, dtype: str = "f32") -> KernelSpec:
    """``x[1, k] @ weight[n, k].T + bias``, whose ``x`` holds zeros; ``dtype``: of the factors."""
    case = Case((rows, n, k), 1, (k, 0, 1), (0, k, 1), (n, 1, 0), dtype, "f32", bias=(0, 1, 0), offset=offset)
    return replace(case.spec(), attributes=(("zeros", (0,)),))


def by_outputs(n: int, k: int, swapped: bool = False, dtype: str = "f32") -> KernelSpec:
    """``where(skip[n], 0, scale[n] * (x[k] @ weight[n, k].T))``; ``swapped``: where not; ``dtype``: of the factors and the result."""
    body: tuple[Instr, ...] = (
        instr("load", dtype=dtype, operand=0, address="d1"),
        instr("load", dtype=dtype, operand=1, address=f"{k}*d0 + d1"),
        instr("contract", 0, 1, dtype="f32"),
        instr("load", dtype="i1", operand=2, address="d0"),
        instr("load", dtype="f32", operand=3, address="d0"),
        instr("arith.mulf", 4, 2, dtype="f32"),
        instr("constant", dtype="f32", value=0.0),
        instr("arith.select", *((3, 5, 6) if swapped else (3, 6, 5)), dtype="f32"),
    )
    if dtype == "bf16":
        body = (*body, instr("arith.truncf", 7, dtype=dtype))
    body = (*body, instr("store", len(body) - 1, operand=4, address="d0"))
    sizes = ((dtype, "read", k), (dtype, "read", n * k), ("i1", "read", n), ("f32", "read", n), (dtype, "write", n))
    operands = tuple(Operand(dtype, role, as_expr(size)) for dtype, role, size in sizes)
    return KernelSpec("contraction", (Dim(as_expr(n)), Dim(as_expr(k), "reduction")), operands, body)


class Compiled:
    """``spec`` with its weight packed, by ``method``, compiled."""

    def __init__(self, spec: KernelSpec, method: str) -> None:
        found = packing(spec, [1], HOST)
        assert isinstance(found, Packing), found
        assert found.spec.schedule.get("skip") == method
        self.packing, self.kernel = found, Kernel(found.spec)

    def __call__(self, weight: Tensor, n: int, *given: Tensor, threads: int = 1) -> Tensor:
        """``given``: the other operands in order, the result and what is derived left out. Behind the result is nothing written."""
        derived = {o: derive(f, weight, a) for o, f, a in self.packing.derivations()}
        dtype = DTYPES[next(o.dtype for o in self.packing.spec.operands if o.role == "write")]
        memory, others = torch.full((n + 64,), float("nan"), dtype=dtype), iter(given)
        roles = [o.role for o in self.kernel.spec.operands]
        tensors = [
            derived[i] if i in derived else memory if r == "write" else next(others) for i, r in enumerate(roles)
        ]
        assert self.kernel(tensors, threads=threads) == 0
        assert memory[n:].isnan().all()
        return memory[:n]


def zeros_among(values: Tensor, share: float) -> Tensor:
    """``values``, at random a share of which is zero, of either sign."""
    zero = torch.zeros_like(values).copysign(torch.randn_like(values))
    return torch.where(torch.rand(values.shape) < share, zero, values)


def agree(got: Tensor, expected: Tensor, size: Tensor) -> None:
    """Within the rounding of sums, and NaN and infinity where they stand in ``expected``."""
    known = expected.isfinite()
    assert torch.equal(got[~known].nan_to_num(7, 8, 9), expected[~known].float().nan_to_num(7, 8, 9))
    rounding = 2.0**-8 * expected.abs() if got.dtype == torch.bfloat16 else 0
    wrong = ~((got - expected).abs() <= 8 * 2.0**-23 * size + rounding + 1e-30)[known]
    assert not wrong.any(), (got[known][wrong][:4], expected[known][wrong][:4])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "k"), SIZES)
def test_zeros_in_the_row(n: int, k: int, dtype: str) -> None:
    product, bias = Compiled(by_inputs(n, k, dtype=dtype), "inputs"), torch.randn(n)
    weight = torch.randn(n, k).to(DTYPES[dtype])
    for number, share in enumerate((0.0, 0.3, 0.5, 0.97, 1.0)):
        x = zeros_among(torch.randn(k), share).to(DTYPES[dtype])
        got = product(weight, n, x, bias, threads=1 + number % 2)
        agree(got, weight.double() @ x.double() + bias, weight.abs().double() @ x.abs().double() + bias.abs())


@pytest.mark.parametrize(("swapped", "dtype"), [(False, "f32"), (True, "f32"), (False, "bf16")])
@pytest.mark.parametrize(("n", "k"), SIZES)
def test_zeros_in_the_results(n: int, k: int, swapped: bool, dtype: str) -> None:
    product = Compiled(by_outputs(n, k, swapped, dtype), "outputs")
    x, weight, scale = torch.randn(k).to(DTYPES[dtype]), torch.randn(n, k).to(DTYPES[dtype]), torch.randn(n)
    for number, share in enumerate((0.0, 0.3, 0.5, 0.97, 1.0)):
        skip = torch.rand(n) < share
        got = product(weight, n, x, skip != swapped if swapped else skip, scale, threads=1 + number % 2)
        expected = (scale.double() * (weight.double() @ x.double())).masked_fill(skip, 0)
        assert (got[skip] == 0).all()
        agree(got, expected, scale.abs().double() * (weight.abs().double() @ x.abs().double()))


def test_the_row_may_start_anywhere() -> None:
    n, k = 50, 70
    product, memory = Compiled(by_inputs(n, k, offset=3), "inputs"), torch.randn(3 + n * k)
    weight, bias, x = memory[3:].view(n, k), torch.randn(n), zeros_among(torch.randn(3 + k), 0.5)
    got = product(memory, n, x, bias)
    agree(got, weight.double() @ x[3:].double() + bias, weight.abs().double() @ x[3:].abs().double() + bias.abs())


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_in_the_row(odd: float) -> None:
    n, k = 40, 100
    product, weight, bias = Compiled(by_inputs(n, k), "inputs"), torch.randn(n, k), torch.randn(n)
    weight[7, 33] = 0
    x = zeros_among(torch.randn(k), 0.5)
    x[33] = odd
    agree(product(weight, n, x, bias), weight.double() @ x.double() + bias, torch.full((n,), torch.inf))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("odd", [float("nan"), float("inf"), float("-inf")])
def test_zeros_meet_weights_that_are_not_finite(odd: float, dtype: str) -> None:
    """0 times infinity is NaN, as in the dense product."""
    n, k = 40, 100
    product, bias = Compiled(by_inputs(n, k, dtype=dtype), "inputs"), torch.randn(n)
    weight = torch.randn(n, k).to(DTYPES[dtype])
    weight[5, 20], weight[31, 99] = odd, odd
    for x in (zeros_among(torch.randn(k), 0.7).to(DTYPES[dtype]), torch.zeros(k, dtype=DTYPES[dtype])):
        expected = weight.double() @ x.double() + bias
        agree(product(weight, n, x, bias), expected, weight.abs().double() @ x.abs().double() + bias.abs())
    assert expected[5].isnan()


def test_results_that_are_left_out_are_zero_whatever_stands_there() -> None:
    n, k = 40, 100
    product, skip = Compiled(by_outputs(n, k), "outputs"), torch.arange(n) % 2 == 0
    x, weight, scale = torch.randn(k), torch.randn(n, k), torch.randn(n)
    weight[4], scale[6], weight[9, 9], scale[11] = torch.nan, torch.inf, torch.inf, torch.nan
    expected = (scale.double() * (weight.double() @ x.double())).masked_fill(skip, 0)
    agree(product(weight, n, x, skip, scale), expected, torch.full((n,), 1e3))


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        (by_inputs(64, 64, rows=2), "not one row"),
        (by_inputs(64, 64, rows="s0"), "not one row"),
        (replace(by_inputs(64, 64), attributes=()), "nothing is known"),
        (by_inputs(64, MOST_LISTED + 1), "too long"),
        (by_outputs(64, MOST_SUMMED + 1), "nothing is known"),
        (replace(by_inputs(64, 64), attributes=(("zeros", (1,)),)), "nothing is known"),
        (by_inputs(64, 64, dtype="f16"), "factors of other types than f32 or bf16"),
    ],
)
def test_others_have_no_such_kernel(spec: KernelSpec, why: str) -> None:
    found = find(packed(spec, 1), HOST)
    assert isinstance(found, str)
    assert why in found


def test_there_is_nothing_to_measure() -> None:
    """How many zeros come is not known to a plan."""
    found = packing(by_inputs(64, 64), [1], HOST)
    assert isinstance(found, Packing)
    assert alternatives(found.spec, HOST) == [found.spec]


def test_small_products_are_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for n, k in ((16, 16), (8, 1000), (64, 64)):
        found = packing(by_inputs(n, k), [1], HOST)
        assert isinstance(found, Packing)
        assert not found.spec.schedule.get("skip")


@pytest.mark.parametrize(("n", "k"), [(576, 1536), (960, 576), (576, 576)])
def test_gaps_in_what_comes_from_memory_may_cost_more_than_they_save(
    n: int, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CPU that reads gaps at 1 / 1.8 of its speed gains from 45 % zeros in the row on; one to which they are nothing, from few."""
    monkeypatch.undo()
    even = Target.named("avx512")
    slow = replace(even, features=even.features | {"avx512_bf16"})
    assert (even.gaps, slow.gaps) == (1, 1.8)
    for share, chosen_by_slow in ((None, True), (0.4, False), (0.5, True)):
        spec = by_inputs(n, k)
        if share is not None:
            spec = replace(spec, attributes=(*spec.attributes, (SHARE, share)))
        assert choice.chosen(packed(spec, 1), even)
        assert bool(choice.chosen(packed(spec, 1), slow)) == chosen_by_slow


def test_few_zeros_are_not_worth_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a threshold leaves nearly all."""
    monkeypatch.undo()
    spec, target = by_inputs(256, 512), Target.named("avx512")
    assert choice.chosen(packed(spec, 1), target)
    few = replace(spec, attributes=(*spec.attributes, (SHARE, 0.05)))
    assert not choice.chosen(packed(few, 1), target)


@pytest.mark.parametrize(
    ("n", "k", "dtype", "method", "low", "high"),
    [
        (1536, 576, "f32", "outputs", 0.35, 0.45),
        (1536, 576, "bf16", "outputs", 0.35, 0.45),
        (576, 1536, "f32", "inputs", 0.4, 0.5),
        (576, 1536, "bf16", "inputs", 0.55, 0.65),
        (640, 512, "bf16", "outputs", 0.48, 0.58),
        (576, 576, "bf16", "inputs", 0.42, 0.52),
    ],
)
def test_zeros_pay_from_where_they_were_measured_to(
    n: int, k: int, dtype: str, method: str, low: float, high: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """About the break-evens of docs/activation_sparsity.md, on Zen 4: four products from memory, two from the cache. Of float32 in the
    row it lies at 30 % while memory is slow and at 57 % while it is fast.
    """
    monkeypatch.undo()
    even = Target.named("avx512")
    target = replace(even, features=even.features | {"avx512_bf16"})
    spec = (by_inputs if method == "inputs" else by_outputs)(n, k, dtype=dtype)
    for share, chosen in ((low, False), (high, True)):
        known = replace(spec, attributes=(*spec.attributes, (SHARE, share)))
        assert bool(choice.chosen(packed(known, 1), target)) == chosen


def test_gaps_are_nothing_to_the_cache_and_little_to_sums_that_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the cache holds is not fetched by streams; a sum's weights are read in order, so that half of the sums left out pay."""
    monkeypatch.undo()
    even = Target.named("avx512")
    slow = replace(even, features=even.features | {"avx512_bf16"})
    for spec in (by_inputs(256, 512), by_outputs(1536, 576)):
        found = choice.chosen(packed(spec, 1), slow)
        assert found
        assert found == choice.chosen(packed(spec, 1), even)
