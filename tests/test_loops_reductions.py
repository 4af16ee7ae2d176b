"""Reductions of the loops template: every kind, both directions, staged passes, lengths, targets and threads."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from kernels import Kernel, LoopsBuilder
from torch import Tensor

from effc.compiler.ir.expr import var
from effc.runtime.dtypes import DTYPE_NAMES

TARGETS = ["host", "avx2", "x86-64"]
#: Odd, prime, just under and over a vector and a block of vectors.
LENGTHS = [1, 2, 7, 16, 17, 63, 64, 67, 250, 1021]


def reduction(rows: int, columns: int, dim: int, kind: str, dtype: str, result: str | None = None) -> LoopsBuilder:
    """``out = x.kind(dim)`` of a contiguous ``rows x columns`` operand; f32 sums of bf16 and f16."""
    points, length = (columns, rows) if dim == 0 else (rows, columns)
    k = LoopsBuilder(
        [(points, "parallel"), (length, "reduction")],
        [(dtype, "read", rows * columns), (result or dtype, "write", points)],
    )
    x = k.load(0, f"d0 + {columns}*d1" if dim == 0 else f"{columns}*d0 + d1")
    if kind.startswith("arg"):
        value = k.reduce(kind, x, k.op("index", dtype="i64", expr=var("d1")), dtype="i64")
    else:
        value = k.reduce(kind, x, dtype=dtype)
    k.store(1, "d0", value)
    return k


def poisoned(size: int, dtype: torch.dtype) -> Tensor:
    return torch.full((size,), float("nan") if dtype.is_floating_point else 77, dtype=dtype)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("length", [1, 7, 64, 250])
def test_sum_of_any_length(length: int, dim: int, target: str) -> None:
    rows, columns = (length, 37) if dim == 0 else (37, length)
    x, out = torch.randn(rows, columns), poisoned(37, torch.float32)
    kernel = Kernel(reduction(rows, columns, dim, "add", "f32").spec(), target)
    for threads in (1, 2):
        out.fill_(float("nan"))
        kernel([x, out], threads=threads)
        torch.testing.assert_close(out.double(), x.double().sum(dim), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", ["add", "max"])
@pytest.mark.parametrize("columns", [1023, 1024, 1209])
def test_many_columns(columns: int, kind: str, target: str) -> None:
    x, out = torch.randn(131, columns), poisoned(columns + 16, torch.float32)
    kernel = Kernel(reduction(131, columns, 0, kind, "f32").spec(), target)
    for threads in (1, 2, 7):
        out.fill_(float("nan"))
        kernel([x, out], threads=threads)
        exact = x.double().sum(0) if kind == "add" else x.double().amax(0)
        torch.testing.assert_close(out[:columns].double(), exact, rtol=1e-6, atol=1e-5)
        assert out[columns:].isnan().all(), "nothing behind the result is written"


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("kind", ["max", "min", "mul", "argmax", "argmin"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.int32, torch.int8])
def test_kinds_and_dtypes(dtype: torch.dtype, kind: str, dim: int) -> None:
    x = torch.randint(-3, 4, (67, 35)).to(dtype)  # many ties
    if dtype.is_floating_point and kind != "mul":
        x[3, 5], x[9, 5], x[11] = float("nan"), float("nan"), float("-inf")
    reference = {
        "max": lambda: x.amax(dim),
        "min": lambda: x.amin(dim),
        "mul": lambda: x.prod(dim, dtype=dtype),
        "argmax": lambda: x.argmax(dim),
        "argmin": lambda: x.argmin(dim),
    }[kind]()
    out = poisoned(reference.numel(), reference.dtype)
    Kernel(reduction(67, 35, dim, kind, DTYPE_NAMES[dtype], DTYPE_NAMES[reference.dtype]).spec())([x, out])
    torch.testing.assert_close(out, reference, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("target", TARGETS)
def test_first_index_wins_in_a_row_of_the_lowest_value(target: str) -> None:
    x = torch.full((3, 50), float("-inf"))
    x[1, 20:] = 1.0
    out = poisoned(3, torch.int64)
    Kernel(reduction(3, 50, 1, "argmax", "f32", "i64").spec(), target)([x, out])
    assert out.tolist() == [0, 20, 0]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("kind", "reference"), [("and", torch.all), ("or", torch.any)])
def test_booleans(kind: str, reference: Callable[..., Tensor], target: str) -> None:
    x = torch.rand(41, 131) < (0.98 if kind == "and" else 0.02)
    out = torch.zeros(41, dtype=torch.bool)
    Kernel(reduction(41, 131, 1, kind, "i1").spec(), target)([x, out])
    assert torch.equal(out, reference(x, dim=1))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dim", [0, 1])
def test_low_precision_sums_in_f32(dim: int, dtype: torch.dtype, target: str) -> None:
    x = torch.randn(130, 70).to(dtype)
    out = poisoned(x.shape[1 - dim], dtype)
    Kernel(reduction(130, 70, dim, "add", DTYPE_NAMES[dtype]).spec(), target)([x, out])
    torch.testing.assert_close(
        out, x.double().sum(dim).to(dtype), rtol=1e-2 if dtype == torch.bfloat16 else 1e-3, atol=1e-2
    )


@pytest.mark.parametrize("shape", [(1, 3_000_001), (3_000_001, 1), (500_003, 6)])
def test_long_sums_stay_accurate(shape: tuple[int, int]) -> None:
    x = torch.rand(shape)
    dim = 0 if shape[0] > shape[1] else 1
    out = poisoned(shape[1 - dim], x.dtype)
    Kernel(reduction(*shape, dim, "add", "f32").spec())([x, out])
    exact = x.double().sum(dim)
    worst = ((out - exact) / exact).abs().max().item()
    assert worst <= max(2 * ((x.sum(dim) - exact) / exact).abs().max().item(), 4 * 1.2e-7)


def softmax(columns: int | str, inplace: bool = False) -> LoopsBuilder:
    """Of 19 rows."""
    size = f"19*({columns})"
    read = [("f32", "readwrite", size)] if inplace else [("f32", "read", size), ("f32", "write", size)]
    k = LoopsBuilder([(19, "parallel"), (columns, "reduction")], read)
    here = f"({columns})*d0 + d1"
    x = k.load(0, here)
    e = k.op("math.exp", k.op("arith.subf", x, k.reduce("max", x)))
    k.store(len(read) - 1, here, k.op("arith.divf", e, k.reduce("add", e)))
    return k


def softmax_input(columns: int) -> Tensor:
    x = torch.randn(19, columns) * 5
    if columns > 2:
        x[4, 1], x[5, 2] = float("-inf"), float("nan")
    return x


def is_softmax(out: Tensor, x: Tensor) -> None:
    torch.testing.assert_close(out, torch.softmax(x.double(), -1).float(), rtol=2e-6, atol=1e-9, equal_nan=True)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("columns", [*LENGTHS, 8193, 20_011])
def test_softmax(columns: int, target: str) -> None:
    """The exponentials of the longest rows wait in the result."""
    x = softmax_input(columns)
    out = torch.full_like(x, float("nan"))
    Kernel(softmax(columns).spec(), target)([x, out], threads=2)
    is_softmax(out, x)


@pytest.mark.parametrize("target", TARGETS)
def test_softmax_of_a_symbolic_size(target: str) -> None:
    kernel = Kernel(softmax("s0").spec(["s0"]), target)
    for columns in (*LENGTHS, 20_011):
        x = softmax_input(columns)
        out = torch.full((x.numel() + 64,), float("nan"))
        kernel([x, out], [columns], threads=2)
        is_softmax(out[: x.numel()].view_as(x), x)
        assert out[x.numel() :].isnan().all(), "nothing behind the result is written"


def test_long_softmax_in_place() -> None:
    """The input is read again by the last pass, so nothing may wait in the result, which is the same memory."""
    x = softmax_input(9001)
    out = x.clone()
    Kernel(softmax(9001, inplace=True).spec())([out], threads=2)
    is_softmax(out, x)


def layer_norm(rows: int | str, columns: int | str, inplace: bool = False) -> LoopsBuilder:
    k = LoopsBuilder(
        [(rows, "parallel"), (columns, "reduction")],
        [("f32", "read", f"{rows}*({columns})"), ("f32", "read", columns), ("f32", "write", f"{rows}*({columns})")],
    )
    here = f"({columns})*d0 + d1"
    count = k.op("arith.sitofp", k.op("index", dtype="i64", expr=k.dims[1].size))
    x = k.load(0, here)
    d = k.op("arith.subf", x, k.op("arith.divf", k.reduce("add", x), count))
    variance = k.op("arith.divf", k.reduce("add", k.op("arith.mulf", d, d)), count)
    scale = k.op("arith.divf", k.constant(1.0), k.op("math.sqrt", k.op("arith.addf", variance, k.constant(1e-5))))
    k.store(2, here, k.op("arith.mulf", k.op("arith.mulf", d, scale), k.load(1, "d1")))
    return k


@pytest.mark.parametrize("target", TARGETS)
def test_layer_norm_of_symbolic_sizes_and_in_place(target: str) -> None:
    kernel = Kernel(layer_norm("s0", "s1").spec(["s0", "s1"]), target)
    for rows, columns in [(5, 1), (3, 16), (40, 67), (2, 5000), (0, 8)]:
        x, weight = torch.randn(rows, columns) + 3, torch.randn(columns)
        expected = torch.nn.functional.layer_norm(x.double(), (columns,), weight.double()).float()
        kernel([x, weight, x], [rows, columns], threads=2)
        torch.testing.assert_close(x, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("target", TARGETS)
def test_batch_statistics_over_outer_and_inner_dims(target: str) -> None:
    """Mean and sum of squares over batch and space with channels between them."""
    n, c, s = 3, 21, 37
    k = LoopsBuilder(
        [(c, "parallel"), (n, "reduction"), (s, "reduction")],
        [("f32", "read", n * c * s), ("f32", "write", c), ("f32", "write", c)],
    )
    x = k.load(0, f"{c * s}*d1 + {s}*d0 + d2")
    k.store(1, "d0", k.op("arith.divf", k.reduce("add", x), k.constant(n * s)))
    k.store(2, "d0", k.reduce("add", k.op("arith.mulf", x, x)))
    x_, mean, squares = torch.randn(n, c, s), poisoned(c, torch.float32), poisoned(c, torch.float32)
    Kernel(k.spec(), target)([x_, mean, squares], threads=2)
    torch.testing.assert_close(mean, x_.mean((0, 2)))
    torch.testing.assert_close(squares, (x_ * x_).sum((0, 2)))


@pytest.mark.parametrize("target", TARGETS)
def test_normalise_over_channels_of_a_channels_first_tensor(target: str) -> None:
    """The reduction dimension is strided, so vectors run along space: several passes, vertically."""
    n, c, s = 2, 33, 45
    k = LoopsBuilder(
        [(n, "parallel"), (s, "parallel"), (c, "reduction")],
        [("f32", "read", n * c * s), ("f32", "write", n * c * s), ("f32", "write", n * s)],
    )
    here = f"{c * s}*d0 + d1 + {s}*d2"
    x = k.load(0, here)
    e = k.op("math.exp", k.op("arith.subf", x, k.reduce("max", x)))
    total = k.reduce("add", e)
    k.store(1, here, k.op("arith.divf", e, total))
    k.store(2, f"{s}*d0 + d1", total)
    x_ = torch.randn(n, c, s)
    out, totals = torch.full_like(x_, float("nan")), poisoned(n * s, torch.float32)
    Kernel(k.spec(), target)([x_, out, totals], threads=2)
    torch.testing.assert_close(out, torch.softmax(x_, 1))
    torch.testing.assert_close(totals.view(n, s), (x_ - x_.amax(1, keepdim=True)).exp().sum(1))


def test_an_empty_reduction_gives_the_neutral_value() -> None:
    k = LoopsBuilder([(3, "parallel"), ("s0", "reduction")], [("f32", "read", "3*s0"), ("f32", "write", 3)])
    k.store(1, "d0", k.reduce("add", k.load(0, "s0*d0 + d1")))
    out = poisoned(3, torch.float32)
    Kernel(k.spec(["s0"]))([torch.empty(0), out], [0])
    assert out.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("target", TARGETS)
def test_a_sum_of_what_does_not_vary_feeds_what_does_not(target: str) -> None:
    k = LoopsBuilder([(37, "parallel"), (5, "reduction")], [("f32", "write", 37), ("f32", "write", 37)])
    total = k.reduce("add", k.constant(2.0))
    k.store(0, "d0", total)
    k.store(1, "d0", k.op("arith.addf", total, total))
    sums, doubled = poisoned(37, torch.float32), poisoned(37, torch.float32)
    Kernel(k.spec(), target)([sums, doubled])
    assert sums.eq(10).all()
    assert doubled.eq(20).all()


def test_the_same_threads_give_the_same_bits() -> None:
    x = torch.randn(300, 4099)
    kernel = Kernel(reduction(300, 4099, 1, "add", "f32").spec())
    results = []
    for _ in range(4):
        out = poisoned(300, torch.float32)
        kernel([x, out], threads=2)
        results.append(out)
    assert all(torch.equal(r, results[0]) for r in results)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("shape", [(1, 200_003), (3, 70_001), (200_003, 1), (30_011, 5), (9_001, 67)])
@pytest.mark.parametrize("kind", ["add", "max", "argmax"])
def test_few_points_share_the_reduction(kind: str, shape: tuple[int, int], target: str) -> None:
    """Threads take parts of the reduction dimension; the result is the same for one thread and for many."""
    dim = 0 if shape[0] > shape[1] else 1
    x = torch.randint(-50, 50, shape).float()
    x[-1, -1] = 1000 if kind == "argmax" else 0
    references: dict[str, Callable[[int], Tensor]] = {"add": x.sum, "max": x.amax, "argmax": x.argmax}
    reference = references[kind](dim)
    kernel = Kernel(reduction(*shape, dim, kind, "f32", DTYPE_NAMES[reference.dtype]).spec(), target)
    assert "_finish" in kernel.text
    for threads in (1, 2, 7):
        out = poisoned(reference.numel(), reference.dtype)
        kernel([x, out], threads=threads)
        assert torch.equal(out, reference)


def test_mean_of_everything_in_a_symbolic_size() -> None:
    k = LoopsBuilder([("s0", "reduction")], [("f32", "read", "s0"), ("f32", "write", 1)])
    count = k.op("arith.sitofp", k.op("index", dtype="i64", expr=var("s0")))
    k.store(1, "0", k.op("arith.divf", k.reduce("add", k.load(0, "d0")), count))
    kernel = Kernel(k.spec(["s0"]))
    for n in (1, 15, 4096, 1_000_003):
        x, out = torch.randn(n) + 1, poisoned(1, torch.float32)
        kernel([x, out], [n], threads=2)
        torch.testing.assert_close(out[0], x.mean())


def test_all_and_any_over_everything() -> None:
    k = LoopsBuilder([(300_000, "reduction")], [("i1", "read", 300_000), ("i1", "write", 1), ("i1", "write", 1)])
    x = k.load(0, "d0")
    k.store(1, "0", k.reduce("and", x, dtype="i1"))
    k.store(2, "0", k.reduce("or", x, dtype="i1"))
    kernel = Kernel(k.spec())
    flags, every, some = torch.ones(300_000, dtype=torch.bool), torch.zeros(1).bool(), torch.zeros(1).bool()
    kernel([flags, every, some], threads=2)
    assert (every.item(), some.item()) == (True, True)
    flags[299_999] = False
    kernel([flags, every, some], threads=2)
    assert (every.item(), some.item()) == (False, True)
    kernel([torch.zeros_like(flags), every, some], threads=2)
    assert (every.item(), some.item()) == (False, False)
