"""Models with graph breaks inside their layers: weights have the names of the user's model, and each of the layers that share a graph has
its own, in plans, calibrations, passes and reports.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fixed_times import by_bytes, fix
from plan_files import kept_in_a_file
from torch import Tensor, nn

import effc
from effc.compiler.capture import record
from effc.compiler.ir.site import sites_of
from effc.metrics import relative_l2

CODES: dict[str, Any] = {"low_rank": False, "sparsity": False, "quantize": {"weights": "int8"}}
BUDGET = 0.05


@pytest.fixture(autouse=True)
def fixed_times() -> Iterator[None]:
    torch._dynamo.reset()
    with pytest.MonkeyPatch.context() as patch:
        fix(patch, by_bytes)
        yield


class Block(nn.Module):
    """Two layers with a graph break between; all blocks are alike, and Dynamo compiles each half once."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 96), nn.Linear(96, width)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.up(x))
        torch._dynamo.graph_break()
        z: Tensor = x + self.down(y)
        return z


class Model(nn.Module):
    def __init__(self, blocks: int = 2) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def weights(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.dim() == 2}


def compiled(model: nn.Module, **options: Any) -> Callable[..., Tensor]:
    return torch.compile(model, backend="effc", options=options)


def off(call: Callable[..., Tensor], model: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return relative_l2([model(x)], [call(x)], [x])


def calibrated(model: nn.Module, rows: int = 7) -> effc.Calibration:
    return effc.calibrate(model, [torch.randn(rows, 64) for _ in range(4)])


def test_sites_have_the_names_of_the_users_model() -> None:
    model, x = Model().eval(), torch.randn(7, 64)
    with torch.no_grad(), record() as recording:
        compiled(model)(x)
    named = {site.param for site in sites_of(recording.programs)}
    assert named == {"blocks.0.up.weight", "blocks.0.down.weight"}  # exact: one graph serves all blocks


@pytest.mark.parametrize("quantized", [{"activations": "token", "smoothing": "smoothquant"}, {"activations": "tensor"}])
def test_a_plan_decides_for_each_layer(quantized: dict[str, Any], tmp_path: Path) -> None:
    model, x = Model().eval(), torch.randn(7, 64)
    calibration = calibrated(model)
    passes = {**CODES, "quantize": {"weights": "int8", "calibration": calibration, **quantized}}
    plan = effc.plan(model, calibration, accuracy_budget=BUDGET, options={"passes": passes})
    assert plan.weights.keys() == weights(model)
    assert len({d.site for d in plan.decisions if d.pass_name == "quantize"}) == len(weights(model))
    assert plan.measured is not None
    assert 1e-5 < plan.measured <= BUDGET
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert 1e-5 < off(compiled(model, plan=plan), model, x) <= 2 * BUDGET
        kept_in_a_file(plan, model, x, tmp_path / "plan")


def test_passes_compress_each_layer() -> None:
    """By a calibration, whose names they need; nothing runs exact, and nothing warns."""
    model, x = Model().eval(), torch.randn(7, 64)
    given = {"quantize": {"activations": "token", "smoothing": "smoothquant", "calibration": calibrated(model)}}
    with warnings.catch_warnings(), torch.no_grad(), record() as recording:
        warnings.simplefilter("error")
        fast = compiled(model, passes=given)
        first = fast(x)
        assert torch.equal(fast(x), first)
    assert {s.name for c in recording.compressed for stage in c.stages for s in stage.sites} == weights(model)
    assert 1e-5 < off(fast, model, x) <= 0.05


def test_new_weights_of_one_layer_run_exact_until_they_are_refreshed() -> None:
    model, x = Model().eval(), torch.randn(7, 64)
    fast = compiled(model, passes={"quantize": {}})
    before = off(fast, model, x)
    block = model.blocks[1]
    assert isinstance(block, Block)
    with torch.no_grad():
        block.up.weight.add_(1.0)
    with pytest.warns(UserWarning, match="not the weights that effc compressed"):
        off(fast, model, x)
    effc.refresh(model)
    assert 0.1 * before < off(fast, model, x) < 10 * before


@pytest.mark.parametrize("in_place", [False, True])
def test_names_begin_at_the_module_that_is_compiled(in_place: bool) -> None:
    """Not at what calls it."""
    inner, x = Model(2).eval(), torch.randn(7, 64)
    if in_place:
        inner.compile(backend="effc")
    wrapped = inner if in_place else torch.compile(inner, backend="effc")
    assert isinstance(wrapped, nn.Module)
    whole = nn.Sequential(wrapped, nn.Tanh())
    with torch.no_grad(), record() as recording:
        whole(x)
    assert {site.param for site in sites_of(recording.programs)} >= {"blocks.0.up.weight", "blocks.0.down.weight"}


def test_tied_weights_have_one_name() -> None:
    model, x = Model(2).eval(), torch.randn(7, 64)
    first, second = model.blocks
    assert isinstance(first, Block)
    assert isinstance(second, Block)
    second.up.weight = first.up.weight
    calibration = calibrated(model)
    plan = effc.plan(model, calibration, accuracy_budget=BUDGET, options={"passes": CODES})
    assert plan.weights.keys() == weights(model)  # named once by torch too
    assert 1e-5 < off(compiled(model, plan=plan), model, x) <= 2 * BUDGET


class Gate(nn.Module):
    """Reads a bias of as many elements as a codebook may have, and positions."""

    positions: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.table, self.gate, self.back = nn.Embedding(32, 64), nn.Linear(64, 16), nn.Linear(16, 64)
        self.register_buffer("positions", torch.arange(32))

    def forward(self, x: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        y = x + self.table(self.positions[: x.shape[0]])
        z: Tensor = x + self.back(torch.sigmoid(self.gate(y)))
        return z


def test_layers_with_small_biases_and_integers() -> None:
    model, x = nn.Sequential(Gate(), Gate()).eval(), torch.randn(7, 64)
    with record() as recording:
        assert 1e-6 < off(compiled(model, passes={"quantize": {}}), model, x) <= BUDGET
    compressed = {s.name for c in recording.compressed for stage in c.stages for s in stage.sites}
    assert compressed >= {f"{i}.{layer}.weight" for i in range(2) for layer in ("gate", "back")}
    torch._dynamo.reset()
    plan = effc.plan(model, calibrated(model), accuracy_budget=BUDGET, options={"passes": CODES})
    assert plan.measured is not None
    assert off(compiled(model, plan=plan), model, x) <= 2 * BUDGET


class Nested(nn.Module):
    """Holds one of its own kind: Dynamo's names are right for the outermost."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layer, self.child = nn.Linear(64, 64), Nested(depth - 1) if depth else None

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.layer(x))
        torch._dynamo.graph_break()
        return y if self.child is None else self.child(y)


def test_a_module_within_one_of_its_kind() -> None:
    model, x = Nested(2).eval(), torch.randn(7, 64)
    with warnings.catch_warnings(), record() as recording:
        warnings.simplefilter("error")
        assert 1e-5 < off(compiled(model, passes={"quantize": {}}), model, x) <= BUDGET
    assert {s.name for c in recording.compressed for stage in c.stages for s in stage.sites} == weights(model)
    torch._dynamo.reset()
    plan = effc.plan(model, calibrated(model), accuracy_budget=BUDGET, options={"passes": CODES})
    assert plan.weights.keys() == weights(model)


@pytest.mark.parametrize("broken", [False, True])
def test_assigned_weights_are_compressed_when_they_are_refreshed(broken: bool) -> None:
    model = Model().eval() if broken else nn.Sequential(nn.Linear(64, 96), nn.Tanh(), nn.Linear(96, 64)).eval()
    x, fast = torch.randn(7, 64), compiled(model, passes={"quantize": {}})
    off(fast, model, x)
    model.load_state_dict({name: torch.randn_like(p) / 8 for name, p in model.state_dict().items()}, assign=True)
    with pytest.warns(UserWarning, match="not the weights that effc compressed"):
        assert off(fast, model, x) < 1e-5
    effc.refresh(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert 1e-5 < off(fast, model, x) <= BUDGET


class Unregistered(nn.Module):
    """Holds a layer in a plain list, so that it is no module of the model's."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.others = nn.Linear(64, 64), [nn.Linear(64, 64)]

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.others[0](torch.relu(self.own(x)))
        return y


def test_a_plan_leaves_weights_of_modules_that_are_not_registered() -> None:
    model, x = Unregistered().eval(), torch.randn(7, 64)
    plan = effc.plan(model, calibrated(model), accuracy_budget=BUDGET, options={"passes": CODES})
    assert plan.weights.keys() == {"own.weight"}
    assert any("others.0.weight" in note and "not registered" in note for note in plan.notes)
    assert 1e-5 < off(compiled(model, plan=plan), model, x) <= 2 * BUDGET
