"""The ablation by text: tokens are what a kernel does, not what its values are called."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_costmodel import gemm
from test_latency_model import part

from effc.compiler.codegen.cpu.emit import emit
from effc.compiler.codegen.cpu.target import Target
from effc.costmodel.model.dataset import dataset

pytest.importorskip("lightgbm", reason="needs the extra 'costmodel'")

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
mlir_text: Any = import_module("mlir_text")


def test_tokens_are_operations_shapes_and_numbers() -> None:
    line = "    %12 = vector.broadcast %c16 : f32 to vector<16xf32>\n    %13 = math.fma %12, %7, %9 : vector<16xf32>"
    assert mlir_text.tokens(line) == ["vector.broadcast", "vector<16xf32>", "math.fma", "vector<16xf32>"]


def test_names_of_values_do_not_count_and_schedules_do() -> None:
    text = emit(gemm(12, 128, 32).with_schedule(mr=6, nr=64, unroll=4, order="panels", touch=0), Target.host())
    other = emit(gemm(12, 128, 32).with_schedule(mr=3, nr=64, unroll=4, order="panels", touch=0), Target.host())
    assert mlir_text.counts(text).sum() > 0
    np.testing.assert_array_equal(mlir_text.counts(text), mlir_text.counts(text.replace("%", "%x")))
    assert not np.array_equal(mlir_text.counts(text), mlir_text.counts(other))


def test_traces_are_in_the_order_of_the_data_and_judged() -> None:
    data = dataset([part(), part()])
    assert [t.median for t in data.traces] == list(data.seconds)
    found = mlir_text.judged(data, data.rows, data.counted, (0,), 1)
    assert found.records == len(data)
    assert found.mape < 1
