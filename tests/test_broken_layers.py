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
    with pytest.warns(UserWarning, match="weights have changed"):
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
