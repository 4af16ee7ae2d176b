"""The scan and scatter templates on hand-written specs, against torch."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from kernels import Kernel, instr
from torch import Tensor

from effc.compiler.ir.errors import LoweringError
from effc.compiler.ir.expr import as_expr
from effc.compiler.ir.spec import Dim, KernelSpec, Operand
from effc.runtime.dtypes import TORCH_DTYPES

TARGETS = ["host", "avx2", "x86-64"]
S0, S1, S2 = (as_expr(f"s{k}") for k in range(3))


def scan_spec(kind: str, dtype: str, accumulator: str, address: str, index: bool = False) -> KernelSpec:
    """A scan over s1 of a tensor [s0, s1, s2]; ``d2`` is the scanned dimension, ``d1`` the trailing one."""
    body = [instr("load", dtype=dtype, operand=0, address=address)]
    if accumulator != dtype:
        body.append(instr("arith.extf", 0, dtype=accumulator))
    body.append(instr("reduce", len(body) - 1, dtype=accumulator, kind=kind))
    if accumulator != dtype:
        body.append(instr("arith.truncf", len(body) - 1, dtype=dtype))
    body.append(instr("store", len(body) - 1, operand=1, address=address))
    operands = [Operand(dtype, "read", S0 * S1 * S2), Operand(dtype, "write", S0 * S1 * S2)]
    if index:
        body.append(instr("index", dtype="i64", expr="d2"))
        body.append(instr("reduce", 0, len(body) - 1, dtype="i64", kind=f"arg{kind}"))
        body.append(instr("store", len(body) - 1, operand=2, address=address))
        operands.append(Operand("i64", "write", S0 * S1 * S2))
    dims = (Dim(S0), Dim(S2), Dim(S1, "reduction"))
    return KernelSpec("scan", dims, tuple(operands), tuple(body), ("s0", "s1", "s2"))


ADDRESS = "s1*s2*d0 + s2*d2 + d1"
SHAPES = [(1, 1, 1), (2, 7, 1), (3, 5, 16), (2, 33, 31), (1, 9, 67), (0, 3, 4), (3, 0, 4), (5, 300, 1)]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("shape", SHAPES)
def test_cumsum_is_as_exact_as_eager(shape: tuple[int, int, int], target: str) -> None:
    x = torch.randn(shape)
    y = torch.full_like(x, math.nan)
    assert Kernel(scan_spec("add", "f32", "f32", ADDRESS), target)([x, y], shape, 2) == 0
    exact = x.double().cumsum(1)
    assert torch.equal(y, exact.float())


@pytest.mark.parametrize("dtype", ["i64", "i32", "i8", "f64"])
def test_cumprod_and_cumsum_of_other_types(dtype: str) -> None:
    torch_dtype = TORCH_DTYPES[dtype]
    x = torch.randint(-3, 4, (3, 11, 21)).to(torch_dtype)
    for kind, reference in (("add", torch.cumsum), ("mul", torch.cumprod)):
        y = torch.full_like(x, 77)
        Kernel(scan_spec(kind, dtype, dtype, ADDRESS))([x, y], x.shape)
        assert torch.equal(y, reference(x, 1, dtype=torch_dtype))


def test_low_precision_accumulates_in_the_wide_type() -> None:
    x = torch.randn(4, 100, 37).bfloat16()
    y = torch.full_like(x, math.nan)
    Kernel(scan_spec("add", "bf16", "f32", ADDRESS))([x, y], x.shape)
    assert torch.equal(y, x.float().cumsum(1).bfloat16()) or torch.allclose(
        y.double(), x.double().cumsum(1), rtol=2**-8, atol=2**-8
    )


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("shape", [(2, 50, 1), (3, 40, 19), (1, 64, 64)])
@pytest.mark.parametrize("kind", ["max", "min"])
def test_running_extrema_and_their_indices(kind: str, shape: tuple[int, int, int], target: str) -> None:
    x = torch.randint(-5, 6, shape).float()  # many ties
    x.view(-1)[torch.randperm(x.numel())[:3]] = math.nan
    y, i = torch.full_like(x, 77.0), torch.full(shape, -7)
    Kernel(scan_spec(kind, "f32", "f32", ADDRESS, index=True), target)([x, y, i], shape, 2)
    values, indices = (torch.cummax if kind == "max" else torch.cummin)(x, 1)
    torch.testing.assert_close(y, values, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(i, indices)


@pytest.mark.parametrize("shape", [(2, 50, 1), (3, 40, 19)])
def test_logcumsumexp(shape: tuple[int, int, int]) -> None:
    x = torch.randn(shape) * 20
    x[0, 0], x[0, 5], x[1, 1] = -math.inf, -math.inf, math.inf
    y = torch.full_like(x, math.nan)
    Kernel(scan_spec("logaddexp", "f32", "f32", ADDRESS))([x, y], shape)
    torch.testing.assert_close(y.double(), x.double().logcumsumexp(1), rtol=6.1e-8, atol=1e-30)


@pytest.mark.parametrize("rows", [1, 3, 4, 17])
@pytest.mark.parametrize("kind", ["add", "logaddexp"])
def test_rows_of_a_matrix_are_scanned_side_by_side(kind: str, rows: int) -> None:
    spec = scan_spec(kind, "f32", "f32", "s1*d0 + d1")
    spec = KernelSpec("scan", (Dim(S0), Dim(S1, "reduction")), spec.operands, spec.body, spec.symbols)
    x = torch.randn(rows, 123)
    y = torch.full_like(x, math.nan)
    Kernel(spec)([x, y], (rows, 123, 1), 2)
    exact = (torch.cumsum if kind == "add" else torch.logcumsumexp)(x.double(), 1)
    torch.testing.assert_close(y.double(), exact, rtol=6.1e-8, atol=1e-30)


def test_the_number_of_threads_does_not_change_a_scan() -> None:
    x = torch.randn(64, 500, 40)
    results = []
    for count in (1, 2, 3):
        y = torch.full_like(x, math.nan)
        Kernel(scan_spec("add", "f32", "f32", ADDRESS))([x, y], x.shape, count)
        results.append(y)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_a_scan_needs_one_scanned_dimension() -> None:
    spec = KernelSpec("scan", (Dim(S0),), (), (), ("s0",))
    with pytest.raises(LoweringError, match="one reduction dimension"):
        Kernel(spec)


# -- scatter ----------------------------------------------------------------------------------------------------------
def rows_spec(combine: str, dtype: str = "f32", independent: int = 0, check: bool = True) -> KernelSpec:
    """target[index[i], :] op= source[i, :]: s0 rows of s1 into a target of s2 rows."""
    body = [
        instr("load", dtype="i64", operand=1, address="d0"),
        instr("constant", dtype="i64", value=0),
        instr("arith.cmpi", 0, 1, dtype="i1", predicate="sge"),
        instr("index", dtype="i64", expr="s2"),
        instr("arith.cmpi", 0, 3, dtype="i1", predicate="slt"),
        instr("arith.andi", 2, 4, dtype="i1"),
        *([instr("check", 5, message="index out of range")] if check else []),
        instr("load", dtype=dtype, operand=2, address="s1*d0 + d1"),
    ]
    body.append(instr("store", len(body) - 1, operand=0, address="s1*v0 + d1", combine=combine))
    operands = (Operand(dtype, "readwrite", S1 * S2), Operand("i64", "read", S0), Operand(dtype, "read", S0 * S1))
    attributes = (("independent_dims", independent),)
    return KernelSpec("scatter", (Dim(S0), Dim(S1)), operands, tuple(body), ("s0", "s1", "s2"), attributes)


COMBINED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "set": lambda a, b: b, "add": torch.add, "mul": torch.mul, "amax": torch.maximum, "min": torch.minimum,
}  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("combine", COMBINED)
@pytest.mark.parametrize("width", [1, 7, 16, 67, 1500])
def test_rows_scattered_with_duplicates(combine: str, width: int, target: str) -> None:
    rows, index = 9, torch.randint(0, 9, (23,))
    start, source = torch.randn(rows, width), torch.randn(23, width)
    source[3, 0] = math.nan
    expected = start.clone()
    for i, row in enumerate(index.tolist()):
        expected[row] = COMBINED[combine](expected[row], source[i])
    got = start.clone()
    assert Kernel(rows_spec(combine), target)([got, index, source], (23, width, rows), 2) == 0
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("width", [1, 40])
@pytest.mark.parametrize("bad", [-1, 5, 2**40])
def test_an_index_out_of_range_is_reported_and_writes_nothing(bad: int, width: int) -> None:
    guarded = torch.full((7, width), 3.0)
    index, source = torch.tensor([0, bad, 4]), torch.ones(3, width)
    code = Kernel(rows_spec("add"))([guarded[1:6], index, source], (3, width, 5))
    assert code == 1 + 6
    expected = torch.full((7, width), 3.0)
    expected[1] = expected[5] = 4.0
    assert torch.equal(guarded, expected)


@pytest.mark.parametrize("dtype", ["bf16", "i64", "i1"])
def test_scatter_add_of_other_types(dtype: str) -> None:
    torch_dtype = TORCH_DTYPES[dtype]
    start = torch.randint(0, 2, (5, 33)).to(torch_dtype)
    source, index = torch.randint(0, 2, (20, 33)).to(torch_dtype), torch.randint(0, 5, (20,))
    got, expected = start.clone(), start.clone()
    Kernel(rows_spec("add", dtype))([got, index, source], (20, 33, 5))
    assert torch.equal(got, expected.index_add_(0, index, source))


@pytest.mark.parametrize("target", TARGETS)
def test_scatter_add_along_the_last_dimension_by_independent_rows(target: str) -> None:
    """out[i, index[i, j]] += source[i, j]: rows are independent, columns collide."""
    body = (
        instr("load", dtype="i64", operand=1, address="s1*d0 + d1"),
        instr("load", dtype="f32", operand=2, address="s1*d0 + d1"),
        instr("store", 1, operand=0, address="s2*d0 + v0", combine="add"),
    )
    operands = (Operand("f32", "readwrite", S0 * S2), Operand("i64", "read", S0 * S1), Operand("f32", "read", S0 * S1))
    attributes = (("independent_dims", 1),)
    spec = KernelSpec("scatter", (Dim(S0), Dim(S1)), operands, body, ("s0", "s1", "s2"), attributes)
    index, source = torch.randint(0, 4, (200, 111)), torch.randn(200, 111)
    got = torch.zeros(200, 4)
    Kernel(spec, target)([got, index, source], (200, 111, 4), 2)
    assert torch.equal(got, torch.zeros(200, 4).scatter_add_(1, index, source))


def test_the_number_of_threads_does_not_change_a_scatter() -> None:
    start, source, index = torch.randn(30, 3000), torch.randn(200, 3000), torch.randint(0, 30, (200,))
    results = []
    for count in (1, 2, 3):
        got = start.clone()
        Kernel(rows_spec("add"))([got, index, source], (200, 3000, 30), count)
        results.append(got)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_a_scatter_stores_last() -> None:
    spec = KernelSpec("scatter", (Dim(S0),), (), (instr("constant", dtype="f32", value=0),), ("s0",))
    with pytest.raises(LoweringError, match="stores it last"):
        Kernel(spec)
