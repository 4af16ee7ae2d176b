"""Features of kernels: a fixed list of columns for every template, which say what they claim to."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from kernels import LoopsBuilder
from test_costmodel import gemm
from torch import Tensor, nn
from trace_cases import MACHINE

from effc.collecting.found import Found, kernels
from effc.compiler.codegen.cpu import schedules
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.options import Options
from effc.compiler.ir.spec import KernelSpec
from effc.costmodel import features
from effc.costmodel.features.work import TEMPLATES


def row(spec: KernelSpec, *symbols: int, threads: int = 2) -> dict[str, float]:
    (values,) = features.matrix([(spec, symbols)], MACHINE, threads)
    return dict(zip(features.COLUMNS, map(float, values), strict=True))


class Everything(nn.Module):
    """Kernels of every template."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(16, 32, 3, padding=1)
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.down, self.up = nn.Linear(192, 48, bias=False), nn.Linear(48, 192, bias=False)

    def forward(self, x: Tensor, heads: Tensor, index: Tensor) -> tuple[Tensor, ...]:
        y = self.depthwise(torch.relu(self.first(x)))
        rows = y.flatten(2)
        seen = nn.functional.scaled_dot_product_attention(heads, heads, heads)
        wide = x.flatten()[: 800 * 192].reshape(800, 192)
        scattered = torch.zeros(40, 7).index_add(0, index, x.flatten()[: 7 * len(index)].reshape(-1, 7))
        return seen, rows.softmax(-1), rows.cumsum(-1), self.up(self.down(wide)), scattered


@lru_cache(maxsize=1)
def found() -> list[Found]:
    torch.manual_seed(0)
    inputs = torch.randn(4, 16, 50, 50), torch.randn(2, 4, 60, 32), torch.randint(0, 40, (30,))
    return kernels(Everything().eval(), inputs, Options())


@lru_cache(maxsize=1)
def rivals() -> list[tuple[KernelSpec, tuple[int, ...]]]:
    target = Target.host()
    return [(spec, f.symbols) for f in found() for spec in schedules.alternatives(f.spec, target)]


def test_columns_have_names_of_their_own() -> None:
    assert len(set(features.COLUMNS)) == len(features.COLUMNS)


def test_every_template_has_features() -> None:
    assert {f.spec.template for f in found()} == set(TEMPLATES)
    made = features.matrix(rivals(), MACHINE, 2)
    assert made.shape == (len(rivals()), len(features.COLUMNS))
    assert not np.isinf(made).any()
    always = [i for i, name in enumerate(features.COLUMNS) if name.startswith(("log_", "is_", "has_"))]
    assert np.isfinite(made[:, always]).all()


def test_a_kernel_has_the_same_features_alone_and_in_a_batch() -> None:
    batch = features.matrix(rivals(), MACHINE, 2)
    again = [(KernelSpec.from_json(json.loads(json.dumps(s.to_json()))), symbols) for s, symbols in rivals()]
    np.testing.assert_array_equal(batch, np.concatenate([features.matrix([k], MACHINE, 2) for k in again]))


def test_schedules_of_one_kernel_differ_in_features() -> None:
    one = next(f for f in found() if len(schedules.alternatives(f.spec, Target.host())) > 8)
    made = features.matrix([(s, one.symbols) for s in schedules.alternatives(one.spec, Target.host())], MACHINE, 2)
    assert len(np.unique(made, axis=0)) == len(made)


def test_nothing_is_predicted_of_no_kernels() -> None:
    assert features.matrix([], MACHINE, 2).shape == (0, len(features.COLUMNS))


@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (7, 13, 31), (128, 64, 256)])
def test_a_product_counts_its_rows_columns_and_sums(m: int, n: int, k: int) -> None:
    made = row(gemm(m, n, k))
    sizes = (2 ** made[name] - 1 for name in ("log_rows", "log_columns", "log_sums", "log_contract"))
    assert list(sizes) == pytest.approx([m, n, k, m * n * k], rel=1e-4)
    assert 2 ** made["log_bytes"] - 1 == pytest.approx(4 * (m * k + k * n + m * n), rel=1e-4)
    assert made["ratio_intensity"] == pytest.approx(math.log2(2 * m * n * k / (4 * (m * k + k * n + m * n))), rel=1e-4)


def test_rows_are_cut_evenly_and_columns_are_filled_up() -> None:
    made = row(gemm(13, 100, 32).with_schedule(mr=6, nr=64, unroll=5, order="rows"))
    assert made["tile_height"] == pytest.approx(13 / 3)  # 5 + 4 + 4
    assert made["tile_taller"] == pytest.approx(1 / 3)
    assert made["column_waste"] == pytest.approx(28 / 100)
    assert made["unroll_waste"] == pytest.approx(3 / 32)
    assert made["accumulators"] == 24
    assert made["register_share"] == pytest.approx(29 / 32)
    even = row(gemm(12, 128, 32).with_schedule(mr=6, nr=64, unroll=4))
    assert even["tile_taller"] == even["column_waste"] == even["unroll_waste"] == 0


def test_threads_share_what_tiles_there_are() -> None:
    spec = gemm(18, 64, 32).with_schedule(mr=6, nr=64)
    assert row(spec, threads=1)["thread_waste"] == 0
    assert row(spec, threads=2)["thread_waste"] == pytest.approx(1 / 3)


def test_what_is_outside_decides_what_is_read_again() -> None:
    tall = gemm(600, 512, 32)  # a panel fits L1, the factor does not
    by_rows = row(tall.with_schedule(mr=6, nr=64, order="rows"))["log_streamed"]
    by_panels = row(tall.with_schedule(mr=6, nr=64, order="panels"))["log_streamed"]
    assert by_rows > by_panels + 2


def test_ways_of_walking_are_told_apart() -> None:
    k = LoopsBuilder(
        [(8, "parallel"), (9, "parallel")], [("f32", "read", 72)] * 4 + [("i64", "read", 8), ("f32", "write", 72)]
    )
    index = k.load(4, "d0")
    loads = [k.load(0, "9*d0 + d1"), k.load(1, "d0 + 8*d1"), k.load(2, "0"), k.load(3, f"v{index}")]
    total = loads[0]
    for load in loads[1:]:
        total = k.op("arith.addf", total, load)
    k.store(5, "9*d0 + d1", total)
    made = row(k.spec())
    points = 2 * 72 + 8 + 8 + 1  # the gather does not depend on d1
    assert made["load_inner"] == pytest.approx(72 / points)
    assert made["load_outer"] == pytest.approx((72 + 8) / points)
    assert made["load_broadcast"] == pytest.approx(1 / points)
    assert made["load_gathered"] == pytest.approx(8 / points)
    assert made["store_inner"] == 1


def test_the_count_knows_latency_and_borders() -> None:
    def counted(spec: KernelSpec) -> float:
        return float(2.0 ** row(spec, threads=1)["log_core_time"])

    narrow, wide = (gemm(96, 256, 512).with_schedule(mr=mr, nr=16, unroll=4) for mr in (1, 8))
    assert counted(narrow) > 1.5 * counted(wide)  # one sum at a time waits for itself
    even, ragged = (gemm(96, n, 512).with_schedule(mr=6, nr=64, unroll=4) for n in (256, 257))
    assert counted(ragged) == pytest.approx(1.25 * counted(even), rel=0.02)  # a panel more, for a column
    half, whole = (gemm(96, 256, k).with_schedule(mr=6, nr=64, unroll=4) for k in (1024, 2048))
    assert counted(whole) == pytest.approx(2 * counted(half), rel=0.02)


def test_every_kernel_is_counted() -> None:
    assert (features.matrix(rivals(), MACHINE, 2)[:, features.COLUMNS.index("log_counted")] > 0).all()


def test_what_is_transposed_is_told_from_what_is_picked_up() -> None:
    def copied(rows: int, columns: int) -> dict[str, float]:
        k = LoopsBuilder(
            [(rows, "parallel"), (columns, "parallel")],
            [("f32", "read", rows * columns), ("f32", "write", rows * columns)],
        )
        k.store(1, f"{columns}*d0 + d1", k.load(0, f"d0 + {rows}*d1"))
        return row(k.spec())

    assert copied(64, 96)["turned"] == pytest.approx(0.5)  # the loads; the stores are of neighbours
    assert copied(64, 96)["picked"] == 0
    assert copied(7, 96)["picked"] > 0.2  # fewer rows than a tile has


def test_operations_are_counted_by_kind_where_they_run() -> None:
    k = LoopsBuilder([(5, "parallel"), (11, "reduction")], [("f32", "read", 55), ("f32", "write", 5)])
    x = k.op("math.exp", k.load(0, "11*d0 + d1"))
    total = k.reduce("add", k.op("arith.mulf", x, x))
    k.store(1, "d0", k.op("arith.divf", total, k.constant(3.0)))
    made = row(k.spec())
    counts = {
        name: round(2 ** made[f"log_{name}"] - 1) for name in ("math", "multiply", "reduce", "divide", "load", "store")
    }
    assert counts == {"math": 55, "multiply": 55, "reduce": 55, "divide": 5, "load": 55, "store": 5}


def test_depthwise_and_windows_are_seen() -> None:
    made = [row(s, *f.symbols) for f in found() for s in (f.spec, *f.spec.stages) if s.template == "contraction"]
    assert any(m["depthwise"] for m in made)
    assert any(m["window"] and not m["depthwise"] for m in made)


def test_symbols_take_their_values() -> None:
    k = LoopsBuilder([("s0", "parallel")], [("f32", "read", "s0"), ("f32", "write", "s0")])
    k.store(1, "d0", k.op("math.exp", k.load(0, "d0")))
    spec = k.spec(["s0"])
    assert row(spec, 7)["log_math"] == pytest.approx(3)
    assert row(spec, 1000)["log_bytes"] == pytest.approx(math.log2(8001), rel=1e-5)


def test_the_machine_is_in_the_features() -> None:
    spec = gemm(64, 64, 64)
    narrow = replace(MACHINE, vector_bytes=32, isa=("avx2", "avx512f"))
    (wide_row,), (narrow_row,) = (features.matrix([(spec, ())], host, 2) for host in (MACHINE, narrow))
    changed = {
        n for n, a, b in zip(features.COLUMNS, wide_row, narrow_row, strict=True) if not np.array_equal(a, b, True)
    }
    assert {"vector_bytes", "has_avx512f", "has_avx2"} <= changed
    assert row(spec, threads=1)["log_compute_time"] > row(spec, threads=2)["log_compute_time"]
