"""Ideal and actual latency, and times in the report: counted by hand, and of models that are compiled here."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import effc
from effc.bench.models import build_block
from effc.compiler.capture.recording import Fallback, GraphFacts
from effc.compiler.capture.source import Source
from effc.costmodel.traffic import Layer
from effc.reporting.report import Report

ROOF = effc.Roof(1e9, (effc.Level("memory", math.inf, 1e9),))


def report(flops: int, latency: float | None, rate: float = 1.0, aten: int = 0) -> Report:
    graph = GraphFacts("inference", fallbacks=[Fallback("aten.mm.default", Source(), "", aten)])
    return Report((graph,), (), 0.0, (), (Layer("product", "", flops, flops, rate, 0, ()),), latency)


def texts(path: Path) -> str:
    return "\n".join(e.text for e in ElementTree.parse(path).iter() if e.text and e.text.strip())


def test_efficiency_is_ideal_over_actual_latency() -> None:
    gap = effc.efficiency_gap({"a": report(10**6, 4e-3), "b": report(10**6, 4e-3, rate=2.0)}, roof=ROOF)
    a, b = gap.models
    assert (a.flops, a.ideal, a.actual, a.computational) == (10**6, 1e-3, 4e-3, 0.25)
    assert (b.ideal, b.computational) == (0.5e-3, 0.125)  # the same operations, in a dtype of twice the peak
    assert a.actual == pytest.approx(a.flops / (ROOF.peak * a.computational))


def test_what_aten_runs_counts_as_float32() -> None:
    (model,) = effc.efficiency_gap({"a": report(10**6, 1.0, rate=2.0, aten=10**6)}, roof=ROOF).models
    assert (model.flops, model.ideal) == (2 * 10**6, 1.5e-3)


def test_a_model_without_products_has_no_ideal_latency(tmp_path: Path) -> None:
    gap = effc.efficiency_gap({"nothing": report(0, 1e-3)}, roof=ROOF)
    assert gap.models[0].computational == 0.0
    gap.to_svg(tmp_path / "gap.svg")
    assert "nothing" in texts(tmp_path / "gap.svg")


@pytest.mark.parametrize("accuracy", [None, {"first": 80.5, "second": 82.0}, {"first": 80.5, "second": 80.5}])
def test_the_plot_shows_every_model(accuracy: dict[str, float] | None, tmp_path: Path) -> None:
    reports = {"first": report(10**6, 4e-3), "second": report(10**7, 2e-2)}
    gap = effc.efficiency_gap(reports, accuracy, measure="top-1, %", roof=ROOF)
    gap.to_svg(tmp_path / "gap.svg")
    shown = texts(tmp_path / "gap.svg")
    for expected in ("first", "second", "25%", "50%", "ideal 1 ms", "actual 20 ms"):
        assert expected in shown
    assert ("top-1, %" in shown) == (accuracy is not None)
    assert ("top-1, % 80.5" in str(gap)) == (accuracy is not None)


@pytest.mark.parametrize(
    ("reports", "accuracy", "message"),
    [
        ({}, None, "an efficiency gap of no models"),
        ({"a": report(1, None)}, None, r"'a' has no measured latency: make it with effc\.explain"),
        ({"a": report(1, 1.0)}, {"b": 1.0}, "name different models: 'a', 'b'"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    reports: dict[str, Report], accuracy: dict[str, float] | None, message: str
) -> None:
    with pytest.raises(effc.InputError, match=message):
        effc.efficiency_gap(reports, accuracy, roof=ROOF)


@pytest.mark.parametrize("rounds", [-1, 1.5, True, "3"])
def test_rounds_that_cannot_be(rounds: object) -> None:
    with pytest.raises(effc.OptionError, match="expected how many calls are timed, 0 or more"):
        effc.explain(nn.Linear(2, 2), torch.ones(1, 2), rounds=rounds)  # type: ignore[arg-type]


# -- compiled models --------------------------------------------------------------------------------------------------
def test_times_and_traffic_of_a_block(tmp_path: Path) -> None:
    case = build_block("basic", 8, 5)
    with torch.no_grad():
        found = effc.explain(case.module, *case.inputs(0, 0), rounds=2)
    assert found.latency is not None
    assert 0 < sum(layer.seconds or 0.0 for layer in found.layers) < 60
    assert all(layer.seconds for layer in found.layers)
    assert sum(layer.flops for layer in found.layers) == found.flops[0] == 2 * (2 * 25 * 9 * 8 * 8)
    data = json.loads(found.to_json())
    assert data["latency"] == found.latency
    assert [layer["name"] for layer in data["layers"]] == [
        k.name for g in found.graphs for r in g.regions for k in r.kernels
    ]
    assert all(layer["bytes"] > 0 for layer in data["layers"])
    water = found.waterline(ROOF)
    assert water.measured == pytest.approx(sum(layer.seconds or 0.0 for layer in found.layers))
    assert water.fused <= water.apart
    (model,) = effc.efficiency_gap({"block": found}, roof=ROOF).models
    assert model.ideal == pytest.approx(found.flops[0] / ROOF.peak)
    assert f"a call takes {1e3 * found.latency:.3g} ms" in str(found)


def test_a_block_moves_at_least_what_enters_and_leaves_it() -> None:
    """As one kernel: its input and its weights once, its result twice; packed weights may be padded to whole vectors."""
    case = build_block("bottleneck", 64, 6)
    with torch.no_grad():
        found = effc.explain(case.module, *case.inputs(0, 0))
    water = found.waterline(ROOF, [(0, len(found.layers))])
    weights = sum(p.numel() for n, p in case.module.named_parameters() if p.dim() == 4)
    least = 4 * (weights + 3 * 64 * 36)
    assert least <= water.blocks[0].bytes < 1.5 * least
    assert water.measured is None
    assert all(layer.seconds is None for layer in found.layers)


def test_without_kernels_there_is_nothing_under_water() -> None:
    water = Report((), (), 0.0).waterline(ROOF)
    assert (water.layers, water.ceiling) == ((), 1.0)


def test_the_backward_graph_has_no_times() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    found = effc.explain(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)), x, rounds=1)
    assert found.latency is not None
    assert any(layer.seconds is not None for layer in found.layers)


def test_the_roof_of_this_machine() -> None:
    from effc.roof import host_roof

    roof = host_roof(1)
    assert roof is host_roof(1)
    assert roof.levels[-1].name == "memory"
    assert 1e9 < roof.peak < 1e15
    assert all(1e8 < level.bandwidth < 1e14 for level in roof.levels)
    assert replace(roof) == roof
