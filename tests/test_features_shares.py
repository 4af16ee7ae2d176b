"""How evenly threads share a kernel, against a division of its tiles by hand; Winograd's squares; orders that make one code."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from contraction_cases import packed
from test_contraction_conv import conv_case
from test_costmodel import gemm
from test_features_counts import row, tiled
from trace_cases import MACHINE, TRACE

from effc.compiler.codegen.cpu.contraction.rows import split
from effc.compiler.ir.spec import KernelSpec
from effc.costmodel import features
from effc.costmodel.model.dataset import dataset
from effc.costmodel.traces import Part


def core_time(spec: KernelSpec, threads: int) -> float:
    (values,) = features.matrix([(spec, ())], replace(MACHINE, cores=threads), threads)
    found = dict(zip(features.COLUMNS, map(float, values), strict=True))
    assert found["active_threads"] == threads
    return float(2.0 ** found["log_core_time"] - 1)


@pytest.mark.parametrize("order", ["rows", "panels"])
@pytest.mark.parametrize(("m", "mr"), [(32, 5), (33, 8), (96, 8), (100, 7), (29, 14)])
@pytest.mark.parametrize("n", [16, 48, 160])
def test_the_longest_share(m: int, mr: int, n: int, order: str) -> None:
    spec = tiled(packed(gemm(m, n, 4096), 1), mr, 16, order)
    heights = [height for tiles, height in split(m, mr) for _ in range(tiles)]
    panels = n // 16
    units = [h for h in heights for _ in range(panels)] if order == "rows" else heights * panels
    half = len(units) // 2
    longest = max(sum(units[:half]), sum(units[half:])) / sum(units)
    assert core_time(spec, 2) / core_time(spec, 1) == pytest.approx(longest, rel=1e-3)


def test_squares_of_an_odd_image_reach_beyond_it() -> None:
    def winograd(side: int) -> float:
        spec = packed(conv_case(1, 64, 64, (side + 2, side + 2), (3, 3)).spec(), 1)
        return row(spec.with_schedule(winograd=2, mr=4, nr=32, tiles=16, unroll=4))["log_core_time"]

    assert winograd(7) == pytest.approx(winograd(8), abs=0.05)  # but for what follows the sums
    assert winograd(9) > winograd(8) + 0.3


def test_a_panel_that_l1_does_not_hold_comes_again_for_each_row_of_squares() -> None:
    spec = packed(conv_case(1, 512, 64, (30, 30), (3, 3)).spec(), 1)
    narrow, wide = (
        row(spec.with_schedule(winograd=2, mr=mr, nr=32, tiles=28, unroll=4))["log_panel_time"] for mr in (4, 14)
    )
    assert narrow > wide + 0.5


def records(m: int) -> Part:
    spec = packed(gemm(m, 64, 128), 1)
    found = [
        replace(
            TRACE,
            spec=json.dumps(tiled(spec, 8, 32, order).to_json()),
            symbols=(),
            own_choice=order == "panels",
            median=seconds,
            low=seconds,
            high=seconds,
            least=seconds,
        )
        for order, seconds in (("panels", 2e-5), ("rows", 1e-5))
    ]
    return Part(MACHINE, tuple(found))


def test_orders_that_make_one_code_are_one_record() -> None:
    data = dataset([records(m=8)])
    assert data.seconds.tolist() == [1e-5]
    assert data.own.tolist() == [True]
    assert len(dataset([records(m=9)])) == 2  # two tiles of rows


def test_features_tell_all_other_schedules_apart() -> None:
    spec = packed(gemm(40, 256, 128), 1)
    several = [tiled(spec, mr, nr, order) for mr in (8, 10, 14) for nr in (16, 32, 64) for order in ("rows", "panels")]
    rows = features.matrix([(s, ()) for s in several], MACHINE, 2)
    assert len(np.unique(np.nan_to_num(rows, nan=-1), axis=0)) == len(several)
