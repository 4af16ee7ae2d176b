"""Plans that quantize: within the budget, verified on the whole model, kept in files, followed only on the weights they were made for.

Times are not the machine's: kernels that read codes are said to be faster, so that plans do not depend on what else runs.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fixed_times import by_dtype, fix
from plan_files import kept_in_a_file
from test_quantize import Tied, codes_read, compiled, off, tied
from torch import nn

import effc
from effc.compiler.capture import record
from effc.planning.plans import Plan
from effc.planning.trial import Trial


@pytest.fixture
def fixed_times() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        fix(patch, by_dtype)
        yield


@pytest.fixture(scope="module")
def planned() -> tuple[nn.Module, torch.Tensor, effc.Calibration, Plan]:
    model, tokens = tied()
    calibration = effc.calibrate(model, [tokens, torch.randint(0, 100, (2, 7))])
    with pytest.MonkeyPatch.context() as patch:
        fix(patch, by_dtype)
        plan = effc.plan(model, calibration, accuracy_budget=0.03)
    return model, tokens, calibration, plan


Planned = tuple[nn.Module, torch.Tensor, effc.Calibration, Plan]


def test_a_plan_spends_its_budget_and_keeps_it(planned: Planned) -> None:
    model, tokens, _, plan = planned
    assert {"query.weight", "value.weight", "out.weight"} <= set(plan.weights)
    assert plan.measured is not None
    assert 1e-5 < plan.measured <= 0.03
    assert {d.pass_name for d in plan.decisions} == {"dense", "quantize"}
    with torch.no_grad(), record() as recording:
        found = compiled(model, plan=plan)(tokens)
    assert 1e-5 < off(found, model, tokens) <= 0.03
    assert codes_read(recording) == set(plan.weights)


def test_a_budget_of_nothing_changes_nothing(planned: Planned) -> None:
    model, _, calibration, _ = planned
    plan = effc.plan(model, calibration)
    assert plan.exact
    assert not plan.weights


@pytest.mark.usefixtures("fixed_times")
def test_a_tight_budget_takes_less(planned: Planned) -> None:
    model, _, calibration, plan = planned
    tight = effc.plan(model, calibration, accuracy_budget=0.004)
    assert tight.measured is not None
    assert tight.measured <= 0.004
    spent = [sum(d.error**2 for d in p.decisions) for p in (tight, plan)]
    assert spent[0] < spent[1]


@pytest.mark.usefixtures("fixed_times")
def test_passes_fix_what_a_plan_may_do(planned: Planned) -> None:
    model, _, calibration, _ = planned
    off_ = effc.plan(model, calibration, accuracy_budget=0.5, options={"passes": {"quantize": False}})
    assert off_.exact
    fixed = {"weights": "int4", "group": 32, "skip": ["out*"]}
    plan = effc.plan(model, calibration, accuracy_budget=0.5, options={"passes": {"quantize": fixed}})
    assert {"query.weight", "value.weight"} <= set(plan.weights) <= {"embedding.weight", "query.weight", "value.weight"}
    assert {stored.form.scheme.group for stored in plan.weights.values()} == {32}


@pytest.mark.usefixtures("fixed_times")
def test_what_is_not_faster_as_a_whole_stays_exact(planned: Planned, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _, calibration, _ = planned
    monkeypatch.setattr(Trial, "seconds", lambda trial, *compiled: [2.0, 1.0])
    plan = effc.plan(model, calibration, accuracy_budget=0.03)
    assert plan.exact
    assert not plan.weights
    assert any("it stays exact" in note for note in plan.notes)


def test_the_report_shows_every_candidate(planned: Planned, tmp_path: Path) -> None:
    model, tokens, _, plan = planned
    with torch.no_grad():
        report = effc.explain(model, tokens, options={"plan": plan}, rounds=1)
    data = json.loads(report.to_json())
    assert data["plan"]["budgets"] == {"accuracy": 0.03, "latency": None, "size": None}
    assert data["plan"]["measured"] == plan.measured
    shown = {d["site"]: d for d in data["decisions"]}
    made = {d.site: d for d in plan.decisions if d.pass_name == "quantize"}
    assert made.keys() <= shown.keys()
    for site, decision in made.items():
        found = shown[site]
        assert found["followed"]
        assert found["measured"] > 0
        assert found["latency"] == decision.latency.seconds
        assert found["candidates"][0]["pass"] == "dense"
        assert [c["verdict"] for c in found["candidates"]].count("chosen") == 1
        assert all(c["verdict"] for c in found["candidates"])
        assert all(c["measured"] for c in found["candidates"] if c["pass"] == "dense" or c["verdict"] == "chosen")
    text = str(report)
    report.to_html(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    for decision in made.values():
        assert f"{decision.site}: {decision.chosen}, " in text
        assert decision.chosen in page
    assert "    not dense (" in text
    assert "slower than the chosen one" in page


def test_in_a_file(planned: Planned, tmp_path: Path) -> None:
    model, tokens, _, plan = planned
    kept_in_a_file(plan, model, tokens, tmp_path / "plan")


@pytest.mark.usefixtures("fixed_times")
@pytest.mark.parametrize(
    "quantized", [{"weights": "nf4", "scales": "double"}, {"weights": "int4", "scales": "dual", "activations": "token"}]
)
def test_scales_of_every_kind_in_a_file(planned: Planned, quantized: dict[str, Any], tmp_path: Path) -> None:
    model, tokens, calibration, _ = planned
    plan = effc.plan(model, calibration, accuracy_budget=1.0, options={"passes": {"quantize": quantized}})
    assert plan.weights
    plan.save(tmp_path / "plan")
    with torch.no_grad():
        found = compiled(model, plan=str(tmp_path / "plan"))(tokens)
        torch._dynamo.reset()
        assert torch.equal(found, compiled(model, plan=plan)(tokens))
        assert off(found, model, tokens) > 1e-3


def test_codes_that_are_edited_are_refused(planned: Planned, tmp_path: Path) -> None:
    path = tmp_path / "plan"
    planned[3].save(path)
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    with pytest.raises(effc.ArtifactError, match="was edited or damaged"):
        effc.Plan.load(path)


def test_codes_that_their_bits_do_not_hold_are_refused(planned: Planned, tmp_path: Path) -> None:
    path, plan = tmp_path / "plan", copy.deepcopy(planned[3])
    stored = next(iter(plan.weights.values()))
    stored.form.codes[0, 0] = -128
    plan.save(path)
    with pytest.raises(effc.ArtifactError, match="codes outside -127 to 127"):
        effc.Plan.load(path)


def test_other_weights_of_the_same_names_stay_exact(planned: Planned) -> None:
    _, tokens, _, plan = planned
    torch.manual_seed(5)
    other = Tied().eval()
    with torch.no_grad(), record() as recording:
        assert off(compiled(other, plan=plan)(tokens), other, tokens) < 1e-5
    assert any("the plan was made for another weight of this name" in note for note in recording.notes)


def a_copy(planned: Planned) -> tuple[nn.Module, torch.Tensor, Callable[..., Any]]:
    """The model, its input, and its compiled form, which has run."""
    model, tokens, _, plan = planned
    model = copy.deepcopy(model)
    fast = compiled(model, plan=plan)
    with torch.no_grad():
        fast(tokens)
    return model, tokens, fast


def test_refresh_cannot_follow_a_plan(planned: Planned) -> None:
    model, tokens, fast = a_copy(planned)
    with torch.no_grad():
        model.get_parameter("out.weight").mul_(2)
        with pytest.warns(UserWarning, match="not the weights that effc compressed"):
            fast(tokens)
        effc.refresh(model)
        with pytest.warns(
            UserWarning, match="not compressed, the exact model runs: the plan was made for another weight"
        ):
            assert off(fast(tokens), model, tokens) < 1e-5


def test_what_refresh_refuses_runs_exact_where_torch_saw_no_change(planned: Planned) -> None:
    model, tokens, fast = a_copy(planned)
    with torch.no_grad():
        model.get_parameter("out.weight").data.mul_(2)
        effc.refresh(model)
        with pytest.warns(UserWarning, match="not compressed, the exact model runs"):
            assert off(fast(tokens), model, tokens) < 1e-5
        assert off(fast(tokens), model, tokens) < 1e-5


def test_a_plan_and_a_pass_that_compresses_exclude_each_other(planned: Planned) -> None:
    model, tokens, _, plan = planned
    with torch.no_grad(), pytest.raises(Exception, match="'plan' and 'passes' exclude each other"):
        compiled(model, plan=plan, passes={"quantize": {}})(tokens)
