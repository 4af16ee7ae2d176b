"""What prices kernels: the model that is asked for, the shipped one nearest to the machine, or the roofline; and what is safe is kept."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from test_costmodel import gemm
from test_latency_model import data, predictor, schedules
from trace_cases import MACHINE

import effc.planning.pricing
from effc.compiler.ir.candidate import Candidate, Latency
from effc.compiler.ir.errors import ArtifactError, OptionError
from effc.compiler.ir.options import Options
from effc.compiler.ir.spec import KernelSpec
from effc.costmodel import roofline
from effc.costmodel.choices import Price
from effc.costmodel.hardware import Hardware, Speed
from effc.costmodel.model import files, shipped
from effc.costmodel.model.predictor import unsure
from effc.planning.pricing import pricing

pytest.importorskip("lightgbm", reason="needs the extra 'costmodel'")

#: A machine whose code is another.
OTHER = replace(MACHINE, name="another", vector_bytes=32, isa=("avx2",))


@pytest.fixture(autouse=True)
def this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(effc.planning.pricing, "host_hardware", lambda cache: MACHINE)


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two models that come with effc: of this machine, and of another."""
    for name, machine in (("mine", MACHINE), ("other", OTHER)):
        files.save(tmp_path / name, predictor(), replace(data(), machines=(machine,)), {})
    monkeypatch.setattr(shipped, "shipped", lambda: {p.name: p for p in sorted(tmp_path.iterdir())})
    return tmp_path


def candidate(specs: list[KernelSpec], latency: Latency | None = None) -> Candidate:
    return Candidate("dense", (tuple(specs),), ((),), latency=latency)


def price_of(specs: list[KernelSpec]) -> Price:
    return pricing(Options()).of([candidate(specs)])


def test_without_a_model_the_roofline_prices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "shipped", dict)
    spec = gemm(64, 64, 64)
    found = pricing(Options())
    assert found.of([candidate([spec])])(spec, ()) == roofline.latency(spec, (), MACHINE)
    assert found.latencies([(spec, ())]) == [roofline.latency(spec, (), MACHINE)]
    assert "the roofline prices kernels" in found.told


def test_the_nearest_model_prices_and_is_named(models: Path) -> None:
    specs = schedules(gemm(100, 64, 128))
    assert pricing(Options()).told == "kernels are priced by the cost model mine, of this kind of machine"
    own = predictor().latencies([(specs[0], ())], MACHINE, 2)[0]
    assert price_of(specs)(specs[0], ()).seconds == pytest.approx(
        own.seconds, rel=0.3
    )  # of as many threads as torch has


@pytest.mark.parametrize(
    "far",
    [
        replace(MACHINE, vector_bytes=16, isa=()),
        replace(MACHINE, l1=4 * MACHINE.l1, l2=MACHINE.l2 // 16),
    ],
    ids=["other code", "other caches"],
)
def test_the_nearest_model_of_a_far_machine_is_sure_of_nothing(
    models: Path, monkeypatch: pytest.MonkeyPatch, far: Hardware
) -> None:
    """So that every kernel keeps its template's own schedule; what it predicts only tells what is worth a measurement."""
    monkeypatch.setattr(effc.planning.pricing, "host_hardware", lambda cache: far)
    found, specs = pricing(Options()), schedules(gemm(100, 64, 128))
    assert re.search(
        r"cost model \w+, the nearest, of a machine at distance \d+\.\d from this one: too far", found.told
    )
    assert all(unsure(latency) for latency in found.latencies([(spec, ()) for spec in specs]))
    price = found.of([candidate(specs)])
    assert {price(s, ()) for s in specs} == {price(specs[0], ())}


def test_fewer_cores_are_no_other_kind_of_machine(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(effc.planning.pricing, "host_hardware", lambda cache: replace(MACHINE, cores=1))
    assert pricing(Options()).told == "kernels are priced by the cost model mine, of this kind of machine"


def test_a_model_of_a_near_machine_is_trusted_less(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = schedules(gemm(100, 64, 128))[0]
    (here,) = pricing(Options()).latencies([(spec, ())])
    near = replace(MACHINE, l2=2 * MACHINE.l2)
    monkeypatch.setattr(effc.planning.pricing, "host_hardware", lambda cache: near)
    found = pricing(Options())
    assert found.told.endswith("the nearest, of a machine at distance 0.5 from this one")
    assert found.latencies([(spec, ())])[0].uncertainty > here.uncertainty


def test_a_model_that_is_asked_for_prices(models: Path) -> None:
    assert "cost model other" in pricing(Options(cost_model="other")).told
    assert str(models / "mine") in pricing(Options(cost_model=models / "mine")).told


def test_a_model_that_is_asked_for_says_that_its_machine_is_too_far(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(effc.planning.pricing, "host_hardware", lambda cache: replace(MACHINE, vector_bytes=16, isa=()))
    found = pricing(Options(cost_model="mine"))
    assert re.search(r"cost model mine, of a machine at distance \d+\.\d from this one: too far", found.told)


def test_a_model_that_names_no_machine_is_sure_of_nothing(models: Path) -> None:
    files.save(models / "mine", predictor(), replace(data(), machines=()), {})
    found, specs = pricing(Options(cost_model="mine")), schedules(gemm(100, 64, 128))
    assert "mine, which names no machine that it was trained on: too little to be sure of" in found.told
    latencies = found.latencies([(spec, ()) for spec in specs])
    assert all(unsure(latency) and latency.uncertainty < 100 for latency in latencies)
    price = found.of([candidate(specs)])
    assert {price(s, ()) for s in specs} == {price(specs[0], ())}


def test_a_model_that_cannot_be_used_is_one_clear_error(models: Path, tmp_path: Path) -> None:
    with pytest.raises(
        OptionError, match="there is no cost model 'mien': it is no folder, and those shipped are mine, other"
    ):
        pricing(Options(cost_model="mien"))
    with pytest.raises(ArtifactError, match="there is no cost model in"):
        pricing(Options(cost_model=tmp_path / "nowhere"))
    (models / "mine" / "latency.low.txt").write_text("tree\n")
    with pytest.raises(ArtifactError, match="was changed or cut short"):
        pricing(Options(cost_model="mine"))
    with pytest.raises(OptionError, match="option 'cost_model' is 3: expected a path or a name"):
        Options(cost_model=3)


def test_a_schedule_is_preferred_only_where_it_is_surely_faster(models: Path) -> None:
    specs = schedules(gemm(100, 64, 128))
    price = price_of(specs)
    own = price(specs[0], ())
    for spec in specs[1:]:
        latency = price(spec, ())
        assert latency == own or latency.seconds <= (1 - effc.planning.pricing.GAIN) * own.seconds
    assert min(price(s, ()).seconds for s in specs) < own.seconds, "the first of these is a poor one"


def test_a_model_that_is_unsure_keeps_the_own_schedule(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = predictor().widened(1e3)
    files.save(models / "mine", wide, data(), {})
    specs = schedules(gemm(100, 64, 128))
    price = price_of(specs)
    assert {price(s, ()) for s in specs} == {price(specs[0], ())}


def test_distances_are_of_machines_and_not_of_names() -> None:
    def near(machine: Hardware) -> float:
        return shipped.distance(MACHINE, machine)

    assert near(MACHINE) == near(replace(MACHINE, name="a twin", cores=64)) == 0
    assert 0 < near(replace(MACHINE, one=Speed(1.2 * MACHINE.one.flops, MACHINE.one.bandwidth))) < 0.5
    assert near(OTHER) > 4
    assert shipped.distance(OTHER, MACHINE) == near(OTHER)


def test_what_ships_can_be_read() -> None:
    for name, folder in shipped.shipped().items():
        model = files.load(folder)
        assert model.machines, name
        assert model.card["errors"]["family"]["all"]["model"]["mape"] < 0.25, name
