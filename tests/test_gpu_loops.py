"""GPU kernels of ``loops``, in the interpreter, against float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from gpu_interpreted import Kernel, agrees
from kernels import LoopsBuilder

from effc.compiler.codegen.gpu import partial
from effc.compiler.ir.errors import LoweringError
from effc.runtime.dtypes import TORCH_DTYPES

_WHOLE: dict[str, Callable[..., torch.Tensor]] = {
    "add": torch.sum,
    "mul": torch.prod,
    "max": torch.amax,
    "min": torch.amin,
}
SIZES = [1, 7, 32, 33, 1025]


def softmax(rows: int | str, columns: int | str, dtype: str = "f32") -> LoopsBuilder:
    k = LoopsBuilder(
        [(rows, "parallel"), (columns, "reduction")], [(dtype, "read", 1 << 20), (dtype, "write", 1 << 20)]
    )
    x = k.load(0, f"{columns}*d0 + d1")
    if dtype != "f32":
        x = k.op("arith.extf", x)
    power = k.op("math.exp", k.op("arith.subf", x, k.reduce("max", x)))
    result = k.op("arith.divf", power, k.reduce("add", power))
    if dtype != "f32":
        result = k.op("arith.truncf", result, dtype=dtype)
    k.store(1, f"{columns}*d0 + d1", result)
    return k


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_a_chain_with_broadcasts(size: int, dtype: str) -> None:
    k = LoopsBuilder(
        [("s0", "parallel"), ("s1", "parallel")],
        [(dtype, "read", "s0*s1"), (dtype, "read", "s1"), (dtype, "read", "s0"), (dtype, "write", "s0*s1")],
    )
    total = k.op("arith.addf", k.load(0, "s1*d0 + d1"), k.load(1, "d1"), dtype=dtype)
    k.store(3, "s1*d0 + d1", k.op("arith.mulf", total, k.load(2, "d0"), dtype=dtype))
    of = TORCH_DTYPES[dtype]
    tensors = [
        torch.randn(3 * size).to(of),
        torch.randn(size).to(of),
        torch.randn(3).to(of),
        torch.zeros(3 * size, dtype=of),
    ]
    agrees(k.spec(("s0", "s1")), tensors, (3, size))


@pytest.mark.parametrize(
    ("rows", "sums", "parts"), [(1, 4096, 64), (50, 200, 2), (7, 1021, 1), (1, 70, 1), (4, 2 * 3 * 128, 12)]
)
@pytest.mark.parametrize("kind", ["add", "max"])
def test_a_long_reduction_of_few_rows_is_cut(
    rows: int, sums: int, parts: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Into equal parts, where there are such; what follows the reduction runs once, on all of them."""
    monkeypatch.setattr(partial, "_LEAST_WORK", 1)
    k = LoopsBuilder(
        [(rows, "parallel"), (sums, "reduction")],
        [("f32", "read", rows * sums), ("f32", "read", rows), ("f32", "write", rows)],
    )
    total = k.reduce(kind, k.op("arith.mulf", k.load(0, f"{rows}*d1 + d0"), k.load(1, "d0")))
    k.store(2, "d0", k.op("arith.addf", total, k.load(1, "d0")))
    kernel = agrees(k.spec(), [torch.randn(rows * sums), torch.randn(rows), torch.full((rows,), float("nan"))])
    assert len(kernel.emitted.launches) == (2 if parts > 1 else 1)
    assert kernel.emitted.scratch.constant == (rows * parts if parts > 1 else 0)


def test_what_needs_the_reduction_at_its_points_is_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial, "_LEAST_WORK", 1)
    kernel = agrees(softmax(2, 4096).spec(), [torch.randn(1 << 20), torch.zeros(1 << 20)])
    assert len(kernel.emitted.launches) == 1


def test_small_reductions_are_one_launch() -> None:
    k = LoopsBuilder([(4096, "reduction")], [("f32", "read", 4096), ("f32", "write", 1)])
    k.store(1, "0", k.reduce("add", k.load(0, "d0")))
    assert len(Kernel(k.spec()).emitted.launches) == 1


@pytest.mark.parametrize("rows", [1, 31, 40])
def test_a_transpose_is_read_and_written_by_neighbours(rows: int) -> None:
    k = LoopsBuilder([(rows, "parallel"), (50, "parallel")], [("f32", "read", 50 * rows), ("f32", "write", 50 * rows)])
    k.store(1, "50*d0 + d1", k.load(0, f"d0 + {rows}*d1"))
    agrees(k.spec(), [torch.randn(50 * rows), torch.zeros(50 * rows)])


def test_strides_and_gaps_are_kept() -> None:
    """Every other column of a matrix of 7 columns; what lies between is not written."""
    k = LoopsBuilder([(9, "parallel"), (3, "parallel")], [("f32", "read", 63), ("f32", "write", 63)])
    k.store(1, "7*d0 + 2*d1", k.op("arith.negf", k.load(0, "7*d0 + 2*d1 + 1")))
    agrees(k.spec(), [torch.randn(63), torch.full((63,), 5.0)])


@pytest.mark.parametrize("columns", [1, 5, 100, 2049, 9001])
def test_softmax_of_any_length(columns: int) -> None:
    """Whole rows in a tile, and rows beyond it in three passes."""
    x = torch.randn(3, columns) * 10
    agrees(softmax(3, columns).spec(), [x.reshape(-1), torch.zeros(3 * columns)])


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_softmax_in_few_bits(dtype: str) -> None:
    x = torch.randn(5 * 77).to(TORCH_DTYPES[dtype])
    agrees(softmax("s0", 77, dtype).spec(("s0",)), [x, torch.zeros_like(x)], (5,))


def test_softmax_keeps_nan_and_infinity() -> None:
    x = torch.randn(4, 33)
    x[0, 3], x[1, 4], x[2, :] = float("nan"), float("inf"), -float("inf")
    kernel, y = Kernel(softmax(4, 33).spec()), torch.zeros(4, 33)
    kernel([x.reshape(-1), y.reshape(-1)])
    torch.testing.assert_close(y, x.softmax(-1), equal_nan=True)


@pytest.mark.parametrize("columns", [3, 768, 5000])
def test_layer_norm(columns: int) -> None:
    k = LoopsBuilder(
        [("s0", "parallel"), (columns, "reduction")],
        [("f32", "read", 1 << 20), ("f32", "read", columns), ("f32", "write", 1 << 20)],
    )
    x, count = k.load(0, f"{columns}*d0 + d1"), k.constant(float(columns))
    mean = k.op("arith.divf", k.reduce("add", x), count)
    centred = k.op("arith.subf", x, mean)
    variance = k.op("arith.divf", k.reduce("add", k.op("arith.mulf", centred, centred)), count)
    scale = k.op("math.rsqrt", k.op("arith.addf", variance, k.constant(1e-5)))
    k.store(2, f"{columns}*d0 + d1", k.op("arith.mulf", k.op("arith.mulf", centred, scale), k.load(1, "d1")))
    agrees(k.spec(("s0",)), [torch.randn(5 * columns) + 3, torch.randn(columns), torch.zeros(5 * columns)], (5,))


@pytest.mark.parametrize("kind", ["add", "mul", "max", "min"])
@pytest.mark.parametrize("dtype", ["f32", "i32", "i64", "f64"])
def test_reductions_along_rows_and_columns(kind: str, dtype: str) -> None:
    of = TORCH_DTYPES[dtype]
    x = (torch.randn(40, 37) + 1).to(of) if of.is_floating_point else torch.randint(-9, 9, (40, 37), dtype=of)
    for size, other, address in ((37, 40, "37*d0 + d1"), (40, 37, "37*d1 + d0")):
        k = LoopsBuilder([(other, "parallel"), (size, "reduction")], [(dtype, "read", 1480), (dtype, "write", other)])
        k.store(1, "d0", k.reduce(kind, k.load(0, address, *()), dtype=dtype))
        kernel, got = Kernel(k.spec()), torch.zeros(other, dtype=of)
        kernel([x.reshape(-1), got])
        dim = 1 if size == 37 else 0
        whole = _WHOLE[kind](x, dim)
        torch.testing.assert_close(got, whole.to(of), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("columns", [1, 45, 3000])
def test_argmax_takes_the_first_of_equals_and_nan_first(columns: int) -> None:
    k = LoopsBuilder([(6, "parallel"), (columns, "reduction")], [("f32", "read", 6 * columns), ("i64", "write", 6)])
    index = k.op("index", dtype="i64", expr="d1")
    k.store(1, "d0", k.op("reduce", k.load(0, f"{columns}*d0 + d1"), index, dtype="i64", kind="argmax"))
    x = torch.randint(0, 3, (6, columns)).float()
    x[5, columns // 2] = float("nan")
    got = torch.zeros(6, dtype=torch.int64)
    Kernel(k.spec())([x.reshape(-1), got])
    assert torch.equal(got, x.argmax(1))


def test_a_single_number() -> None:
    k = LoopsBuilder([], [("bf16", "read", 1), ("bf16", "write", 1)])
    k.store(1, "0", k.op("math.tanh", k.load(0, "0"), dtype="bf16"))
    agrees(k.spec(), [torch.randn(1).bfloat16(), torch.zeros(1).bfloat16()])


def test_a_sum_of_everything() -> None:
    k = LoopsBuilder([("s0", "reduction")], [("f32", "read", "s0"), ("f32", "write", 1)])
    k.store(1, "0", k.reduce("add", k.load(0, "d0")))
    for count in (1, 100, 20_001):
        agrees(k.spec(("s0",)), [torch.rand(count), torch.zeros(1)], (count,))


def test_gathers_and_masked_loads() -> None:
    """Rows of a table by index, and zeros from the fourth column on."""
    k = LoopsBuilder(
        [("s0", "parallel"), (5, "parallel")], [("i64", "read", "s0"), ("f32", "read", 50), ("f32", "write", "5*s0")]
    )
    row = k.load(0, "d0")
    inside = k.op(
        "arith.cmpi", k.op("index", dtype="i64", expr="d1"), k.constant(3, "i64"), dtype="i1", predicate="slt"
    )
    value = k.load(1, f"5*v{row} + d1", inside, k.constant(0.0))
    k.store(2, "5*d0 + d1", value)
    agrees(k.spec(("s0",)), [torch.randint(0, 10, (7,)), torch.randn(50), torch.ones(35)], (7,))


def test_a_failed_check_is_written_into_the_error_cell() -> None:
    k = LoopsBuilder([(9, "parallel")], [("i64", "read", 9), ("i64", "write", 9)])
    x = k.load(0, "d0")
    k.op("check", k.op("arith.cmpi", x, k.constant(5, "i64"), dtype="i1", predicate="slt"), dtype="", message="no")
    k.store(1, "d0", x)
    kernel = Kernel(k.spec())
    assert kernel([torch.arange(9) % 5, torch.zeros(9, dtype=torch.int64)]) == 0
    assert kernel([torch.arange(9), torch.zeros(9, dtype=torch.int64)]) == 4


def test_bools_are_bytes() -> None:
    k = LoopsBuilder([(70, "parallel")], [("i1", "read", 70), ("f32", "read", 70), ("i1", "write", 70)])
    positive = k.op("arith.cmpf", k.load(1, "d0"), k.constant(0.0), dtype="i1", predicate="ogt")
    k.store(2, "d0", k.op("arith.xori", k.load(0, "d0"), positive, dtype="i1"))
    agrees(k.spec(), [torch.rand(70) > 0.5, torch.randn(70), torch.zeros(70, dtype=torch.bool)])


UNARY = [
    "exp",
    "log",
    "erf",
    "tanh",
    "sin",
    "cos",
    "sqrt",
    "rsqrt",
    "expm1",
    "log1p",
    "absf",
    "floor",
    "ceil",
    "roundeven",
    "trunc",
]


@pytest.mark.parametrize("name", UNARY)
@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_functions(name: str, dtype: str) -> None:
    k = LoopsBuilder([(100, "parallel")], [(dtype, "read", 100), (dtype, "write", 100)])
    k.store(1, "d0", k.op(f"math.{name}", k.load(0, "d0"), dtype=dtype))
    of = TORCH_DTYPES[dtype]
    x = torch.cat([torch.rand(97, dtype=of) * 8 + 0.01, torch.tensor([0.0, float("inf"), float("nan")], dtype=of)])
    agrees(k.spec(), [x, torch.zeros(100, dtype=of)])


@pytest.mark.parametrize(("dtype", "bits"), [("f32", "i32"), ("bf16", "i16"), ("f64", "i64")])
def test_bits_of_numbers(dtype: str, bits: str) -> None:
    k = LoopsBuilder([(60, "parallel")], [(dtype, "read", 60), (bits, "write", 60), (dtype, "write", 60)])
    mask = k.constant(-2, bits)
    cut = k.op("arith.andi", k.op("arith.bitcast", k.load(0, "d0"), dtype=bits), mask, dtype=bits)
    k.store(1, "d0", cut)
    k.store(2, "d0", k.op("arith.bitcast", cut, dtype=dtype))
    x, integers = torch.randn(60).to(TORCH_DTYPES[dtype]), torch.zeros(60, dtype=TORCH_DTYPES[bits])
    back = torch.zeros_like(x)
    Kernel(k.spec())([x, integers, back])
    assert torch.equal(integers, x.view(TORCH_DTYPES[bits]) & -2)
    assert torch.equal(back, integers.view(TORCH_DTYPES[dtype]))


def test_libm_functions_of_float32() -> None:
    k = LoopsBuilder([(60, "parallel")], [("f32", "read", 60), ("f32", "read", 60), ("f32", "write", 60)])
    k.store(2, "d0", k.op("libm.hypotf", k.load(0, "d0"), k.load(1, "d0")))
    x, y, got = torch.randn(60), torch.randn(60), torch.zeros(60)
    Kernel(k.spec())([x, y, got])
    torch.testing.assert_close(got, torch.hypot(x, y))


@pytest.mark.parametrize("op", ["floordivsi", "divsi", "remsi"])
def test_divisions_of_integers(op: str) -> None:
    k = LoopsBuilder([(60, "parallel")], [("i32", "read", 60), ("i32", "read", 60), ("i32", "write", 60)])
    k.store(2, "d0", k.op(f"arith.{op}", k.load(0, "d0"), k.load(1, "d0"), dtype="i32"))
    divisors = torch.tensor([-7, -3, -1, 1, 2, 5], dtype=torch.int32).repeat(10)
    agrees(k.spec(), [torch.randint(-50, 50, (60,), dtype=torch.int32), divisors, torch.zeros(60, dtype=torch.int32)])


@pytest.mark.parametrize("columns", [64, 4096])
def test_updates_in_place(columns: int) -> None:
    """A row less its mean, over itself: also where a row does not fit a tile, as the last pass writes."""
    k = LoopsBuilder([(2, "parallel"), (columns, "reduction")], [("f32", "readwrite", 2 * columns)])
    x = k.load(0, f"{columns}*d0 + d1")
    k.store(0, f"{columns}*d0 + d1", k.op("arith.subf", x, k.reduce("max", x)))
    agrees(k.spec(columns=64, rows=1), [torch.randn(2 * columns)])


def test_what_a_later_pass_reads_is_not_overwritten() -> None:
    k = LoopsBuilder([(2, "parallel"), (4096, "reduction")], [("f32", "readwrite", 8192), ("f32", "write", 2)])
    x = k.load(0, "4096*d0 + d1")
    highest = k.reduce("max", x)
    centred = k.op("arith.subf", x, highest)
    k.store(0, "4096*d0 + d1", centred)
    shifted = k.op("arith.subf", x, k.reduce("add", centred))
    k.store(1, "d0", k.reduce("add", shifted))
    with pytest.raises(LoweringError, match="overwritten"):
        Kernel(k.spec(columns=64, rows=1))


def test_an_unknown_function_is_refused_by_name() -> None:
    k = LoopsBuilder([(8, "parallel")], [("f32", "read", 8), ("f32", "write", 8)])
    k.store(1, "d0", k.op("libm.j0", k.load(0, "d0")))
    with pytest.raises(LoweringError, match=r"libm\.j0 \(v1\) has no form on the GPU"):
        Kernel(k.spec())


def test_more_points_than_32_bits_number_are_refused() -> None:
    """Addresses beyond are 64 bits wide, indices are not."""
    k = LoopsBuilder([(1 << 31, "parallel")], [("i8", "read", 1 << 31), ("i8", "write", 1 << 31)])
    k.store(1, "d0", k.load(0, "d0"))
    with pytest.raises(LoweringError, match="2147483648 points along one axis"):
        Kernel(k.spec())
    k = LoopsBuilder(
        [(1 << 20, "parallel"), (1 << 12, "parallel")], [("i8", "read", 1 << 33), ("i8", "write", 1 << 33)]
    )
    k.store(1, "8192*d0 + d1", k.load(0, "8192*d0 + d1"))
    assert "arith.extsi" in Kernel(k.spec()).text


@pytest.mark.parametrize("rows", [1, 4, 16])
@pytest.mark.parametrize("columns", [16, 128])
def test_any_tile_gives_the_same(rows: int, columns: int) -> None:
    spec = softmax(13, 200).spec(rows=rows, columns=columns, warps=2)
    agrees(spec, [torch.randn(2600), torch.zeros(2600)])


def test_unaligned_pointers_promise_nothing() -> None:
    spec = softmax(2, 8).spec()
    assert "tt.divisibility" in Kernel(spec).text.split("function_type")[0]
    unaligned = agrees(spec, [torch.randn(16), torch.zeros(16)], aligned=False)
    assert unaligned.text.count("tt.divisibility") == 1, "scratch memory alone"
