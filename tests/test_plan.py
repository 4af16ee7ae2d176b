"""Sites, plans and the planner: what a user sees of planning, and that a plan's schedules reach the kernels."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from exactness import assert_exact
from torch import Tensor, nn

import effc
from effc.compiler.capture import record
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir import plan as ir
from effc.compiler.ir.budgets import Budgets
from effc.compiler.ir.site import Site, sites_of
from effc.costmodel.neighbours import Link, links
from effc.planning.groundwork import host_alternatives
from effc.planning.plans import Plan, plan_of
from effc.planning.trial import Trial


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 20, 3)
        self.norm = nn.BatchNorm2d(20)
        self.head = nn.Linear(20, 37)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(torch.relu(self.norm(self.conv(x)))[..., 3, 3])
        return y


def net() -> Net:
    return Net().eval()


def batches(count: int = 2) -> list[Tensor]:
    return [torch.randn(3, 3, 9, 9) for _ in range(count)]


@pytest.fixture(scope="module")
def planned() -> tuple[Net, effc.Calibration, Plan]:
    torch.manual_seed(1)
    model = net()
    calibration = effc.calibrate(model, batches())
    return model, calibration, effc.plan(model, calibration, accuracy_budget=0.01)


def compiled_with(model: nn.Module, **options: Any) -> Callable[..., Any]:
    return torch.compile(model, backend="effc", options=options)


def sites(model: nn.Module, x: Tensor) -> list[Site]:
    with torch.no_grad(), record() as recording:
        torch.compile(model, backend="effc")(x)
    return sites_of(recording.programs)


def other_schedules(plan: Plan) -> Plan:
    """The plan with the last of its schedules at every contraction, which nobody would choose."""
    alternatives = host_alternatives()
    found = []
    for decision in plan.decisions:
        kernels = tuple(list(alternatives(k))[-1] for k in decision.kernels)
        found.append(replace(decision, kernels=kernels, changed=kernels != decision.kernels))
    return replace(plan, decisions=tuple(found))


# -- sites ----------------------------------------------------------------------------------------------------------
def test_sites_are_named_after_their_weights_and_survive_json() -> None:
    found = sites(net(), torch.randn(3, 3, 9, 9))
    by_param = {site.param: site for site in found if site.spec.template == "contraction"}
    assert set(by_param) == {"conv.weight", "head.weight"}
    assert by_param["head.weight"].name.startswith("head.weight/contract")
    assert by_param["head.weight"].flops == 2 * 3 * 20 * 37
    assert by_param["conv.weight"].flops == 2 * 3 * 20 * 49 * 27
    assert len({site.name for site in found}) == len(found)
    assert [Site.from_json(json.loads(json.dumps(s.to_json()))) for s in found] == found


def test_sites_keep_their_names_in_another_compilation() -> None:
    model, x = net(), torch.randn(3, 3, 9, 9)
    first = [site.name for site in sites(model, x)]
    torch._dynamo.reset()
    assert [site.name for site in sites(model, x)] == first


# -- effc.plan ------------------------------------------------------------------------------------------------------
def test_a_plan_is_exact_verified_and_says_why(planned: tuple[Net, effc.Calibration, Plan]) -> None:
    model, calibration, plan = planned
    assert plan.exact
    assert plan.measured is not None
    assert plan.measured < 1e-5
    assert (plan.calibration, plan.metric, plan.budgets) == (calibration.digest, "relative_l2", Budgets(0.01))
    assert {d.pass_name for d in plan.decisions} == {"dense"}
    assert all("the only candidate" in d.reason and d.latency.seconds > 0 for d in plan.decisions)
    fast = compiled_with(model, plan=plan)
    with torch.no_grad():
        assert_exact(model, (torch.randn(3, 3, 9, 9),), fast)


def test_the_chosen_schedules_are_the_kernels_schedules(planned: tuple[Net, effc.Calibration, Plan]) -> None:
    model, _, plan = planned
    other = other_schedules(plan)
    assert len(other.schedules()) == 2
    assert other != plan
    x = torch.randn(3, 3, 9, 9)
    with torch.no_grad(), record() as recording:
        assert_exact(model, (x,), compiled_with(model, plan=other))
    run = {spec.key(): spec.schedule for program, _ in recording.programs for spec in program.kernels}
    assert {key: run[key] for key in other.schedules()} == other.schedules()
    assert recording.notes == []


def test_every_schedule_on_offer_computes_the_same(planned: tuple[Net, effc.Calibration, Plan]) -> None:
    """Of the linear layer, whose packed weights follow the schedule's width."""
    model, _, plan = planned
    (decision,) = [d for d in plan.decisions if d.site.startswith("head.weight")]
    for spec in host_alternatives()(decision.kernels[0]):
        one = replace(plan, decisions=(replace(decision, kernels=(spec,), changed=True),))
        torch._dynamo.reset()
        with torch.no_grad():
            assert_exact(model, (torch.randn(3, 3, 9, 9),), compiled_with(model, plan=one))


def test_a_schedule_that_the_template_does_not_have_is_not_used(planned: tuple[Net, effc.Calibration, Plan]) -> None:
    model, _, plan = planned
    odd = tuple(
        replace(d, changed=True, kernels=tuple(k.with_schedule(mr=99, nr=7, unroll=4) for k in d.kernels))
        for d in plan.decisions
    )
    with torch.no_grad():
        fast = compiled_with(model, plan=replace(plan, decisions=odd))
        assert_exact(model, (torch.randn(3, 3, 9, 9),), fast)


class Spectrum(nn.Module):
    """A layer that reads what ATen computed."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 33)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(torch.linalg.svdvals(x))
        return y


def test_kernels_behind_an_operation_of_aten_are_timed() -> None:
    model, x = Spectrum().eval(), torch.randn(4, 6, 7)
    plan = effc.plan(model, effc.calibrate(model, [x]), accuracy_budget=1e-9)
    (decision,) = plan.decisions
    assert decision.site.startswith("head.weight")
    assert decision.latency.seconds > 0
    with torch.no_grad():
        torch.testing.assert_close(compiled_with(model, plan=plan)(x), model(x))


@pytest.mark.parametrize("metric", ["top1_disagreement", "kl"])
def test_metrics_by_name(planned: tuple[Net, effc.Calibration, Plan], metric: str) -> None:
    model, calibration, _ = planned
    plan = effc.plan(model, calibration, accuracy_budget=0.01, metric=metric)
    assert plan.metric == metric
    assert plan.measured == pytest.approx(0.0, abs=1e-9)


def test_a_metric_of_the_users_own(planned: tuple[Net, effc.Calibration, Plan]) -> None:
    model, calibration, _ = planned
    seen = []

    def worst(reference: Tensor, output: Tensor, batch: tuple[Tensor, ...]) -> float:
        seen.append(batch[0].shape)
        return float((reference - output).abs().max())

    plan = effc.plan(model, calibration, metric=worst)
    assert set(seen) == {torch.Size([3, 3, 9, 9])}
    assert len(seen) % 2 == 0, "two batches are held out; a plan that timing drops is followed by another"
    assert plan.metric.endswith("worst")
    assert any("rounding" in note for note in plan.notes) == (plan.measured is not None and plan.measured > 0)


def test_another_models_calibration_is_refused(planned: tuple[Net, effc.Calibration, Plan]) -> None:
    _, calibration, _ = planned
    with pytest.raises(effc.OptionError, match="made from another model, or its weights have changed"):
        effc.plan(net(), calibration)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"accuracy_budget": -1}, "option 'accuracy_budget' is -1"),
        ({"metric": "l2"}, "option 'metric' is 'l2'"),
        ({"options": {"accuracy_budget": 0.1}}, "give it accuracy_budget= and metric=, not in options"),
    ],
)  # fmt: skip
def test_bad_arguments(planned: tuple[Net, effc.Calibration, Plan], arguments: Mapping[str, Any], text: str) -> None:
    with pytest.raises(effc.OptionError, match=text):
        effc.plan(*planned[:2], **arguments)


# -- a plan as an option --------------------------------------------------------------------------------------------
def notes_of(model: nn.Module, x: Tensor, **options: Any) -> list[str]:
    with torch.no_grad():
        return list(effc.explain(model, x, options=options).notes)


def test_a_plan_for_another_cpu_is_reported_and_not_followed(planned: tuple[Net, effc.Calibration, Plan]) -> None:
    model, _, plan = planned
    other = replace(other_schedules(plan), hardware="host/32/avx2,fma")
    (note,) = notes_of(model, torch.randn(3, 3, 9, 9), plan=other)
    assert note.startswith("the plan was made for another CPU (host/32/avx2,fma)")


def test_a_plan_for_another_model_is_reported(planned: tuple[Net, effc.Calibration, Plan]) -> None:
    (note,) = notes_of(nn.Linear(5, 6).eval(), torch.randn(4, 5), plan=planned[2])
    assert note.startswith("no kernel of this graph is in the plan")


def test_a_budget_without_a_plan_is_met_by_exact_code_and_said_so() -> None:
    (note,) = notes_of(nn.Linear(5, 6).eval(), torch.randn(4, 5), accuracy_budget=0.02)
    assert note.startswith("accuracy_budget=0.02: nothing of it was spent, for only a plan")


def test_a_budget_and_gradients_exclude_each_other() -> None:
    fast = compiled_with(nn.Linear(3, 4), accuracy_budget=0.01)
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match=r"OptionError: an accuracy budget of 0\.01 and"):
        fast(torch.randn(2, 3))


def test_a_plan_and_a_budget_exclude_each_other(planned: tuple[Net, effc.Calibration, Plan]) -> None:
    with pytest.raises(effc.OptionError, match="exclude each other: a plan has both in it"):
        effc.Options(plan=planned[2], accuracy_budget=0.1)


def test_the_report_shows_the_decisions(planned: tuple[Net, effc.Calibration, Plan]) -> None:
    model, _, plan = planned
    with torch.no_grad():
        report = effc.explain(model, torch.randn(3, 3, 9, 9), options={"plan": plan})
    shown = {d["site"]: d for d in json.loads(report.to_json())["decisions"]}
    assert set(shown) == {d.site for d in plan.decisions}
    assert all(d["followed"] for d in shown.values())
    (line,) = [line for line in str(report).splitlines() if "head.weight/contract" in line and "dense" in line]
    assert "us" in line
    assert "the only candidate" in line


def test_calibration_batches_of_several_sizes_do_not_make_later_compilations_dynamic() -> None:
    model = nn.Linear(24, 7).eval()
    plan = effc.plan(model, effc.calibrate(model, [torch.randn(n, 24) for n in (4, 9, 3)]))
    with torch.no_grad():
        report = effc.explain(model, torch.randn(4, 24), options={"plan": plan})
    assert [d.followed for d in report.decisions] == [True]


# -- files ----------------------------------------------------------------------------------------------------------
def test_a_plan_in_a_file(planned: tuple[Net, effc.Calibration, Plan], tmp_path: Path) -> None:
    plan = planned[2]
    plan.save(tmp_path / "plan")
    again = Plan.load(tmp_path / "plan")
    assert again == plan
    assert hash(again) == hash(plan)
    assert effc.Options(plan=tmp_path / "plan") == effc.Options(plan=plan)
    assert effc.Options.of(effc.Options(plan=plan).arguments()) == effc.Options(plan=plan)


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (lambda data: data[: len(data) // 2], "is damaged: its header cannot be read"),
        (lambda data: data.replace(b'"accuracy": 0.01', b'"accuracy": 0.05'), "was edited or damaged"),
        (lambda data: data.replace(b"plan 5", b"plan 1"), "holds 'plan 1', where 'plan 5' is expected"),
        (lambda data: b"", "cannot be read"),
        (lambda data: b'{"format": "effc plan 1"}', "was not written by this version of effc"),
    ],
)  # fmt: skip
def test_damaged_plans(
    planned: tuple[Net, effc.Calibration, Plan], tmp_path: Path, edit: Callable[[bytes], bytes], text: str
) -> None:
    path = tmp_path / "plan"
    planned[2].save(path)
    path.write_bytes(edit(path.read_bytes()))
    with pytest.raises(effc.ArtifactError, match=text):
        Plan.load(path)


def test_a_plan_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(effc.ArtifactError, match=r"cannot be read: .*No such file"):
        effc.Options(plan=tmp_path / "none.json")


def test_a_plan_of_no_decisions_is_a_plan() -> None:
    empty = plan_of(ir.Plan("m", "c", Target.host().key, "kl", Budgets(0.0), 0.0, ()))
    assert ir.Plan.from_json(json.loads(json.dumps(empty.to_json()))) == empty
    assert isinstance(empty.decisions, tuple)


# -- other budgets ----------------------------------------------------------------------------------------------------
def test_the_least_error_within_a_size() -> None:
    model, x = nn.Sequential(nn.Linear(64, 96), nn.Tanh(), nn.Linear(96, 64)).eval(), torch.randn(8, 64)
    calibration = effc.calibrate(model, [x])
    whole = sum(p.numel() * p.element_size() for p in model.parameters())
    only = {"passes": {"low_rank": False, "sparsity": False, "quantize": {"weights": "int8"}}}
    plan = effc.plan(model, calibration, size_budget_mb=0.7 * whole / 1e6, options=only)
    assert plan.size is not None
    assert plan.size <= 0.7 * whole
    assert plan.weights
    assert plan.measured is not None
    with torch.no_grad():
        found, expected = compiled_with(model, plan=plan)(x), model(x)
        assert float((found - expected).norm() / expected.norm()) == pytest.approx(plan.measured, rel=0.01)
    roomy = effc.plan(model, calibration, size_budget_mb=whole / 1e6, options=only)
    assert not roomy.weights
    assert roomy.size == whole
    with pytest.raises(effc.BudgetError, match=r"no plan keeps least relative_l2, size <= 0\.001 MB: the weights take"):
        effc.plan(model, calibration, size_budget_mb=0.001, options=only)


def test_a_latency_that_holds_as_it_is_and_one_that_nothing_reaches(
    planned: tuple[Net, effc.Calibration, Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, calibration, _ = planned
    monkeypatch.setattr(Trial, "seconds", lambda trial, *compiled: [0.002 for _ in compiled])
    assert effc.plan(model, calibration, latency_budget_ms=2.0).exact
    with pytest.raises(effc.BudgetError, match="latency <= 1 ms: of the nearest that was found, its call takes 2 ms"):
        effc.plan(model, calibration, latency_budget_ms=1.0)


@pytest.mark.parametrize("name", ["latency_budget_ms", "size_budget_mb"])
@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), True, "1 ms"])
def test_what_is_no_budget(planned: tuple[Net, effc.Calibration, Plan], name: str, value: Any) -> None:
    with pytest.raises(effc.OptionError, match=f"option '{name}' is .*: expected a number above 0"):
        effc.plan(*planned[:2], **{name: value})


@pytest.mark.parametrize("name", ["latency_budget_ms", "size_budget_mb", "autotune"])
def test_budgets_without_a_plan_say_where_they_belong(name: str) -> None:
    with pytest.raises(effc.OptionError, match=rf"'{name}' is an argument of effc\.plan: call effc\.plan"):
        effc.Options(**{name: 5})


class Chain(nn.Module):
    """Two convolutions, the second of which reads a padded buffer that the first writes into."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(16, 32, 3, padding=1), nn.Conv2d(32, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.two(torch.relu(self.one(x)))
        return y


def test_neighbours_are_found_through_padding() -> None:
    with torch.no_grad(), record() as recording:
        torch.compile(Chain().eval(), backend="effc")(torch.randn(1, 16, 12, 12))
    found = sites_of(recording.programs)
    numbers = {site.param: n for n, site in enumerate(found) if site.param}
    assert Link(numbers["one.weight"], numbers["two.weight"], 32 * 12 * 12) in links(recording.programs)
    assert all(link.reader != numbers["one.weight"] for link in links(recording.programs))
