"""Pointwise kernels of the loops template: addresses, dtypes, masks, gathers, checks, targets and threads."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from kernels import Kernel, LoopsBuilder
from torch import Tensor

from effc.compiler.ir.expr import as_expr
from effc.runtime.dtypes import DTYPE_NAMES, TORCH_DTYPES

TARGETS = ["host", "avx2", "x86-64"]


def nans(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.full(shape, float("nan") if dtype.is_floating_point else 77, dtype=dtype)


@pytest.mark.parametrize("target", TARGETS)
def test_any_length_from_any_offset(target: str) -> None:
    k = LoopsBuilder([("s0", "parallel")], [("f32", "read", "s0"), ("f32", "read", "s0"), ("f32", "write", "s0")])
    x, y = k.load(0, "d0"), k.load(1, "d0")
    k.store(2, "d0", k.op("arith.addf", k.op("arith.mulf", x, y), x))
    kernel = Kernel(k.spec(["s0"]), target)
    for n in (0, 1, 3, 15, 16, 17, 63, 64, 65, 127, 131, 4096, 300_007):
        a, b, out = torch.randn(n + 3)[3:], torch.randn(n + 1)[1:], nans(n + 9)
        kernel([a, b, out[5:]], [n], threads=2)
        assert torch.equal(out[5 : 5 + n], a * b + a)
        assert torch.cat([out[:5], out[5 + n :]]).isnan().all()  # nothing outside is touched


@pytest.mark.parametrize("target", TARGETS)
def test_broadcast_over_channels(target: str) -> None:
    n, c, h, w = 2, 5, 7, 9
    k = LoopsBuilder(
        [(n, "parallel"), (c, "parallel"), (h, "parallel"), (w, "parallel")],
        [("f32", "read", n * c * h * w), ("f32", "read", c), ("f32", "write", n * c * h * w)],
    )
    here = f"{c * h * w}*d0 + {h * w}*d1 + {w}*d2 + d3"
    k.store(2, here, k.op("arith.maximumf", k.op("arith.addf", k.load(0, here), k.load(1, "d1")), k.constant(0.0)))
    x, bias, out = torch.randn(n, c, h, w), torch.randn(c), nans(n, c, h, w)
    x[0, 0, 0, :3] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    Kernel(k.spec(), target)([x, bias, out], threads=2)
    torch.testing.assert_close(out, torch.relu(x + bias[:, None, None]), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("shape", [(1, 1), (3, 70), (70, 3), (64, 64), (133, 258)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int8, torch.bool])
def test_transposed_copy(dtype: torch.dtype, shape: tuple[int, int], target: str) -> None:
    rows, columns = shape
    k = LoopsBuilder(
        [(columns, "parallel"), (rows, "parallel")],
        [(DTYPE_NAMES[dtype], "read", rows * columns), (DTYPE_NAMES[dtype], "write", rows * columns)],
    )
    k.store(1, f"{rows}*d0 + d1", k.load(0, f"d0 + {columns}*d1"))
    x = torch.randint(0, 2 if dtype == torch.bool else 100, shape).to(dtype)
    out = torch.zeros(columns, rows, dtype=dtype)
    Kernel(k.spec(), target)([x, out], threads=2)
    assert torch.equal(out, x.t())


@pytest.mark.parametrize("target", TARGETS)
def test_transposed_and_plain_operands_together(target: str) -> None:
    n, m, b = 67, 45, 3
    k = LoopsBuilder(
        [(b, "parallel"), (n, "parallel"), (m, "parallel")],
        [("f32", "read", b * n * m), ("f32", "read", b * n * m), ("f32", "read", m), ("f32", "write", b * n * m)],
    )
    x, y = k.load(0, f"{n * m}*d0 + {m}*d1 + d2"), k.load(1, f"{n * m}*d0 + d1 + {n}*d2")
    k.store(3, f"{n * m}*d0 + {m}*d1 + d2", k.op("arith.mulf", k.op("arith.addf", x, y), k.load(2, "d2")))
    a, t, s, out = torch.randn(b, n, m), torch.randn(b, m, n), torch.randn(m), nans(b, n, m)
    Kernel(k.spec(), target)([a, t, s, out], threads=2)
    assert torch.equal(out, (a + t.transpose(1, 2)) * s)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("stride", [2, 3, -1])
def test_strided_and_reversed_reads(stride: int, target: str) -> None:
    n = 101
    k = LoopsBuilder([(n, "parallel")], [("f32", "read", n * abs(stride)), ("f32", "write", n)])
    k.store(1, "d0", k.load(0, f"{stride}*d0" if stride > 0 else f"{n - 1} - d0"))
    x, out = torch.randn(n * abs(stride)), nans(n)
    Kernel(k.spec(), target)([x, out])
    assert torch.equal(out, x[::stride] if stride > 0 else x.flip(0))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", ["i8", "bf16", "i16", "i1"])
def test_strided_stores_of_bytes_and_words(dtype: str, target: str) -> None:
    k = LoopsBuilder([(3, "parallel"), (50, "parallel")], [(dtype, "read", 150), (dtype, "write", 350)])
    k.store(1, "d0 + 7*d1", k.load(0, "50*d0 + d1"))
    kind = TORCH_DTYPES[dtype]
    x = torch.randn(3, 50).to(kind) if kind.is_floating_point else torch.randint(0, 2, (3, 50)).to(kind)
    out = torch.full((50, 7), 3).to(kind)
    Kernel(k.spec(), target)([x, out])
    assert torch.equal(out[:, :3], x.T)
    assert torch.equal(out[:, 3:], torch.full((50, 4), 3).to(kind))


@pytest.mark.parametrize("target", TARGETS)
def test_strided_store_leaves_the_gaps(target: str) -> None:
    k = LoopsBuilder([(50, "parallel")], [("f32", "read", 50), ("f32", "write", 150)])
    k.store(1, "3*d0 + 1", k.load(0, "d0"))
    x, out = torch.randn(50), nans(150)
    Kernel(k.spec(), target)([x, out])
    assert torch.equal(out[1::3], x)
    assert out.isnan().sum() == 100


@pytest.mark.parametrize("target", TARGETS)
def test_nearest_upsampling_by_division(target: str) -> None:
    k = LoopsBuilder([(9, "parallel"), (22, "parallel")], [("f32", "read", 55), ("f32", "write", 198)])
    k.store(1, "22*d0 + d1", k.load(0, "11*(d0 // 2) + d1 // 2"))
    x, out = torch.randn(5, 11), nans(9, 22)
    Kernel(k.spec(), target)([x, out])
    assert torch.equal(out, x.repeat_interleave(2, 0).repeat_interleave(2, 1)[:9])


@pytest.mark.parametrize("target", TARGETS)
def test_padding_reads_nothing_outside(target: str) -> None:
    """A masked load whose address would lie before or behind the operand where the mask is false."""
    n = 37
    k = LoopsBuilder([(n + 200_000, "parallel")], [("f32", "read", n), ("f32", "write", n + 200_000)])
    i = k.op("index", dtype="i64", expr=as_expr("d0 - 100000"))
    low = k.op("arith.cmpi", i, k.constant(0, "i64"), dtype="i1", predicate="sge")
    high = k.op("arith.cmpi", i, k.constant(n, "i64"), dtype="i1", predicate="slt")
    inside = k.op("arith.andi", low, high, dtype="i1")
    k.store(1, "d0", k.load(0, "d0 - 100000", inside, k.constant(-3.0)))
    x, out = torch.randn(n), nans(n + 200_000)
    Kernel(k.spec(), target)([x, out], threads=2)
    assert torch.equal(out, torch.nn.functional.pad(x, (100_000, 100_000), value=-3.0))


def lookup(rows: int, columns: int, count: int) -> LoopsBuilder:
    k = LoopsBuilder(
        [(count, "parallel"), (columns, "parallel")],
        [("i64", "read", count), ("f32", "read", rows * columns), ("f32", "write", count * columns)],
    )
    i = k.load(0, "d0")
    inside = k.op("arith.cmpi", i, k.constant(rows, "i64"), dtype="i1", predicate="ult")
    k.op("check", inside, dtype="", message="index out of range")
    k.store(2, f"{columns}*d0 + d1", k.load(1, f"{columns}*v{i} + d1"))
    return k


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("columns", [1, 5, 64, 67])
def test_rows_by_index_and_its_check(columns: int, target: str) -> None:
    spec = lookup(100, columns, 41).spec()
    kernel = Kernel(spec, target)
    index, table, out = torch.randint(0, 100, (41,)), torch.randn(100, columns), nans(41, columns)
    assert kernel([index, table, out], threads=2) == 0
    assert torch.equal(out, table[index])
    for wrong in (100, -1, 2**40, -(2**40)):
        index[40] = wrong
        assert kernel([index, table, out], threads=2) == 1 + next(i for i, n in enumerate(spec.body) if n.op == "check")


@pytest.mark.parametrize("target", TARGETS)
def test_gather_along_the_last_dim(target: str) -> None:
    k = LoopsBuilder(
        [(7, "parallel"), (35, "parallel")], [("i64", "read", 245), ("f32", "read", 700), ("f32", "write", 245)]
    )
    i = k.load(0, "35*d0 + d1")
    k.store(2, "35*d0 + d1", k.load(1, f"100*d0 + v{i}"))
    index, x, out = torch.randint(0, 100, (7, 35)), torch.randn(7, 100), nans(7, 35)
    Kernel(k.spec(), target)([index, x, out])
    assert torch.equal(out, x.gather(1, index))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_conversions_of_every_value(dtype: torch.dtype, target: str) -> None:
    """All 65,536 bit patterns widen exactly; f32 values around every rounding boundary round to nearest even."""
    name = DTYPE_NAMES[dtype]
    every = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype)
    widen = LoopsBuilder([(65536, "parallel")], [(name, "read", 65536), ("f32", "write", 65536)])
    widen.store(1, "d0", widen.op("arith.extf", widen.load(0, "d0")))
    out = torch.zeros(65536)
    Kernel(widen.spec(), target)([every, out])
    assert torch.equal(out.isnan(), every.isnan())
    assert torch.equal(
        out.nan_to_num(0.0, 1e39, -1e39).view(torch.int32), every.float().nan_to_num(0.0, 1e39, -1e39).view(torch.int32)
    )

    values = every.float()
    steps = torch.cat(
        [values, values * (1 + 2**-12), values * (1 - 2**-12), (values + values.roll(-1)) / 2, torch.randn(1000) * 1e-6]
    )
    n = steps.numel()
    narrow = LoopsBuilder([(n, "parallel")], [("f32", "read", n), (name, "write", n)])
    narrow.store(1, "d0", narrow.op("arith.truncf", narrow.load(0, "d0"), dtype=name))
    rounded = torch.zeros(n, dtype=dtype)
    Kernel(narrow.spec(), target)([steps, rounded])
    expected = steps.to(dtype)
    assert torch.equal(rounded.isnan(), expected.isnan())
    keep = ~expected.isnan()
    assert torch.equal(rounded[keep].view(torch.int16), expected[keep].view(torch.int16))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.int64])
@pytest.mark.parametrize(("op", "mode"), [("arith.divsi", "trunc"), ("arith.floordivsi", "floor")])
def test_integer_division_never_traps(op: str, mode: str, dtype: torch.dtype, target: str) -> None:
    name = DTYPE_NAMES[dtype]
    k = LoopsBuilder([(37, "parallel")], [(name, "read", 37), (name, "read", 37), (name, "write", 37)])
    k.store(2, "d0", k.op(op, k.load(0, "d0"), k.load(1, "d0"), dtype=name))
    a, b = torch.randint(-100, 100, (37,)).to(dtype), torch.randint(-9, 10, (37,)).to(dtype)
    b[b == 0] = 5
    expected = torch.div(a, b, rounding_mode=mode)
    a[0], b[0], b[1] = torch.iinfo(dtype).min, -1, 0
    out = torch.zeros(37, dtype=dtype)
    Kernel(k.spec(), target)([a, b, out])
    assert torch.equal(out[2:], expected[2:])
    assert out[0] == torch.iinfo(dtype).min  # wraps, as two's complement does


@pytest.mark.parametrize("target", TARGETS)
def test_booleans_and_masked_stores(target: str) -> None:
    k = LoopsBuilder([(77, "parallel")], [("f32", "read", 77), ("i1", "write", 77), ("f32", "readwrite", 77)])
    x = k.load(0, "d0")
    positive = k.op("arith.cmpf", x, k.constant(0.0), dtype="i1", predicate="ogt")
    k.store(1, "d0", positive)
    k.store(2, "d0", x, positive)
    a, flags, kept = torch.randn(77), torch.zeros(77, dtype=torch.bool), torch.full((77,), 9.0)
    Kernel(k.spec(), target)([a, flags, kept])
    assert torch.equal(flags, a > 0)
    assert torch.equal(kept, torch.where(a > 0, a, 9.0))


def test_a_single_point() -> None:
    k = LoopsBuilder([], [("f32", "read", 1), ("f32", "write", 1)])
    k.store(1, "0", k.op("math.exp", k.load(0, "0")))
    x, out = torch.randn(1), nans(1)
    Kernel(k.spec())([x, out], threads=2)
    torch.testing.assert_close(out, x.exp())


@pytest.mark.parametrize("target", TARGETS)
def test_libm_calls_lane_by_lane(target: str) -> None:
    k = LoopsBuilder([(35, "parallel")], [("f32", "read", 35), ("f32", "write", 35)])
    k.store(1, "d0", k.op("libm.lgamma", k.load(0, "d0")))
    x, out = torch.rand(35) * 10, nans(35)
    Kernel(k.spec(), target)([x, out])
    torch.testing.assert_close(out, torch.lgamma(x))


@pytest.mark.skipif(shutil.which("objdump") is None, reason="needs objdump")
@pytest.mark.parametrize(
    ("target", "used", "refused"), [("avx2", "ymm", r"zmm|%k[0-7]"), ("x86-64", "xmm", r"zmm|ymm|\tv")]
)
def test_a_target_uses_its_own_instructions_only(target: str, used: str, refused: str, tmp_path: Path) -> None:
    k = LoopsBuilder([(1000, "parallel")], [("f32", "read", 1000), ("f32", "write", 1000)])
    k.store(1, "d0", k.op("math.exp", k.load(0, "d0")))
    path = tmp_path / "kernel.o"
    path.write_bytes(Kernel(k.spec(), target).object)
    code = subprocess.run(["objdump", "-d", path], capture_output=True, text=True, check=True).stdout
    assert used in code
    assert not re.search(refused, code)
