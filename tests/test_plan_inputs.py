"""Plans of models and calibrations that are not one graph and batches of one shape: each runs, and keeps its budget."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from fixed_times import by_dtype, fix
from torch import Tensor, nn

import effc
from effc.compiler import build
from effc.compiler.capture import backend
from effc.compiler.ir.errors import LoweringError
from effc.compiler.ir.options import Options
from effc.compiler.ir.program import Program
from effc.metrics import relative_l2
from effc.planning import captured
from effc.planning.trial import Trial

#: What a plan may choose.
ONLY_CODES = {"passes": {"low_rank": False, "sparsity": False, "quantize": {"weights": "int8"}}}
BUDGET = 0.05


@pytest.fixture(autouse=True)
def fixed_times() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        fix(patch, by_dtype)
        yield


class Layers(nn.Module):
    """``broken``: as two graphs; ``tied``: the last layer has the weight of the first."""

    def __init__(self, *, broken: bool = False, tied: bool = False) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 64), nn.Linear(64, 64)
        self.broken = broken
        if tied:
            self.last.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x))
        if self.broken:
            torch._dynamo.graph_break()
        z: Tensor = self.last(y)
        return z


def planned(model: nn.Module, batches: list[Tensor]) -> effc.Plan:
    return effc.plan(model, effc.calibrate(model, batches), accuracy_budget=BUDGET, options=ONLY_CODES)


def error(model: nn.Module, plan: effc.Plan, x: Tensor, **arguments: Any) -> float:
    options: dict[str, Any] = {"plan": plan}
    fast = torch.compile(model, backend="effc", options=options, **arguments)
    with torch.no_grad():
        return relative_l2([model(x)], [fast(x)], [x])


def test_one_batch_has_no_margin() -> None:
    model, x = Layers().eval(), torch.randn(7, 64)
    plan = planned(model, [x])
    assert plan.weights.keys() == {"first.weight", "last.weight"}
    assert plan.margin is None
    assert plan.measured is not None
    assert 1e-5 < plan.measured <= BUDGET
    assert 1e-5 < error(model, plan, x) <= BUDGET


def test_batches_of_several_shapes() -> None:
    """More than Dynamo keeps graphs of, and the first one's shape again: the plan's error is that of all, its sites are of the first."""
    model = Layers().eval()
    batches = [torch.randn(rows, 64) for rows in (7, 1, 13, 2, 3, 4, 5, 6, 8, 9, 10, 11, 7)]
    plan = planned(model, batches)
    assert plan.weights.keys() == {"first.weight", "last.weight"}
    assert plan.measured is not None
    assert 1e-5 < plan.measured <= BUDGET
    assert all(1e-5 < error(model, plan, x) <= 2 * BUDGET for x in batches[:3])


def test_a_model_compiled_for_any_size() -> None:
    model, x = Layers().eval(), torch.randn(7, 64)
    plan = planned(model, [x, torch.randn(7, 64)])
    for rows in (7, 12):
        assert 1e-5 < error(model, plan, torch.randn(rows, 64), dynamic=True) <= 2 * BUDGET


def test_a_model_of_two_graphs() -> None:
    model, x = Layers(broken=True).eval(), torch.randn(7, 64)
    plan = planned(model, [x, torch.randn(7, 64)])
    assert plan.weights.keys() == {"first.weight", "last.weight"}
    assert {d.pass_name for d in plan.decisions} == {"quantize"}
    assert 1e-5 < error(model, plan, x) <= BUDGET


def test_tied_weights_are_decided_on_once() -> None:
    model, x = Layers(tied=True).eval(), torch.randn(7, 64)
    plan = planned(model, [x, torch.randn(7, 64)])
    assert len(plan.weights) == 1
    assert 1e-5 < error(model, plan, x) <= BUDGET


def test_a_model_without_weights_has_an_exact_plan() -> None:
    model, x = nn.Sequential(nn.ReLU(), nn.Softmax(-1)).eval(), torch.randn(7, 64)
    plan = planned(model, [x, torch.randn(7, 64)])
    assert plan.exact
    assert plan.weights == {}
    assert error(model, plan, x) < 1e-6


def test_what_effc_makes_no_kernels_of_is_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch would run it, in a time that nothing tells."""

    def refused(*arguments: object) -> Program:
        raise LoweringError("nothing is lowered")

    monkeypatch.setattr(captured, "lowered", refused)
    plan = planned(Layers().eval(), [torch.randn(7, 64)])
    assert plan.exact
    assert [len(d.considered) for d in plan.decisions] == [1, 1]


def test_what_pytorch_runs_in_a_plan_is_not_taken_for_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each layer in bytes is lowered, but no code is made of both together: PyTorch runs them, in a time that nothing tells."""
    of_backend = backend.builder

    def builder(options: Options) -> Any:
        made = of_backend(options)

        def refusing(text: str) -> Any:
            if "i8" in text:
                raise LoweringError("no code for bytes")
            return made(text)

        return refusing

    monkeypatch.setattr(backend, "builder", builder)
    plan = planned(Layers().eval(), [torch.randn(7, 64), torch.randn(7, 64)])
    assert plan.exact
    assert [len(d.considered) for d in plan.decisions] == [2, 2]
    assert all(d.considered[1].latency.seconds >= d.dense.seconds for d in plan.decisions)


@pytest.mark.parametrize("refused", [False, True])
def test_a_model_that_must_be_compiled_whole_is_planned(monkeypatch: pytest.MonkeyPatch, refused: bool) -> None:
    """What a variant would leave to PyTorch is not offered; all else is."""
    if refused:
        lowered = build.lowered

        def refusing(text: str, *arguments: Any) -> Program:
            if "i8" in text:
                raise LoweringError("nothing of bytes is lowered")
            return lowered(text, *arguments)

        monkeypatch.setattr(captured, "lowered", refusing)
    model, x = Layers().eval(), torch.randn(7, 64)
    calibration = effc.calibrate(model, [x, torch.randn(7, 64)])
    plan = effc.plan(model, calibration, accuracy_budget=BUDGET, options={**ONLY_CODES, "fallback": "error"})
    assert set(plan.weights) == (set() if refused else {"first.weight", "last.weight"})


class Counting(nn.Module):
    """Compiled anew in every call."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls = nn.Linear(64, 64), "x"

    def forward(self, x: Tensor) -> Tensor:
        self.calls += "x"
        y: Tensor = self.layer(x) * len(self.calls)
        return y


def test_what_pytorch_would_take_to_eager_is_refused() -> None:
    trial = Trial(model := Counting().eval(), effc.calibrate(model, [torch.randn(2, 64)]))
    compiled = trial.compile(Options())
    with pytest.raises(effc.InputError, match=r"was compiled more than \d+ times"):
        trial.time(*[compiled] * 20)


class Broken(nn.Module):
    """Compiled anew for each layer, by its name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.layer, self.name = nn.Linear(8, 8), name

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        torch._dynamo.graph_break()
        return torch.tanh(y) * (2 if self.name == "layer 3" else 1)


@pytest.mark.parametrize("before", [False, True])
def test_more_layers_than_dynamo_compiles(before: bool) -> None:
    """``before``: a user has compiled the model, and Dynamo has taken layers to eager."""
    torch._dynamo.reset()
    model, x = nn.Sequential(*(Broken(f"layer {i}") for i in range(11))).eval(), torch.randn(2, 8)
    if before:
        with torch.no_grad():
            torch.compile(model, backend="eager")(x)
    trial = Trial(model, effc.calibrate(model, [x, torch.randn(2, 8)]))
    compiled = trial.compile(Options())
    assert sum(not site.params for site in compiled.sites) == len(model)  # what is behind each graph break
    assert trial.error(compiled, "relative_l2").value < 1e-5


def test_a_model_that_is_not_on_the_cpu_is_refused() -> None:
    model = Layers().eval()
    calibration = effc.calibrate(model, [torch.randn(7, 64)])
    with pytest.raises(effc.InputError, match=r"effc\.plan is for models on the CPU, and first\.weight is on meta"):
        effc.plan(model.to("meta"), calibration)


class Flagged(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 64)

    def forward(self, x: Tensor, again: bool) -> Tensor:
        x = self.layer(x)
        return self.layer(x) if again else x


def test_batches_of_one_shape_with_other_flags() -> None:
    """Of the second, Dynamo makes another graph: what is lowered later are still the first one's kernels."""
    model, x = Flagged().eval(), torch.randn(7, 64)
    trial = Trial(model, effc.calibrate(model, [(x, False), (x, True)]))
    compiled = trial.compile(Options())
    assert trial.error(compiled, "relative_l2").value < 1e-6
    (lowered,) = trial.lower([captured.Asked(Options())])
    assert lowered is not None
    assert len(lowered.programs) == len(compiled.recording.programs) == 1
