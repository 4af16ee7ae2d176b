"""Plans that prune: patterns only where they divide a weight, taken where the zeros cost little, kept in files.

Times are not the machine's: kernels that leave zeros out are said to be faster.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fixed_times import by_zeros, fix
from plan_files import kept_in_a_file
from test_quantize import Tied, off, tied
from torch import nn

import effc
from effc.compiler.ir.candidate import Latency
from effc.compiler.ir.errors import OptionError
from effc.compiler.ir.options import Options
from effc.compiler.ir.program import Program
from effc.kernel_clock import KernelClock
from effc.passes.sparsity import Sparsify
from effc.planning.trial import Trial
from effc.planning.variants import offered

#: What else a plan would try.
_OTHERS = {"quantize": False, "low_rank": False}


def nearly_in_blocks(weight: torch.Tensor) -> None:
    """Half of its blocks of 16 x 1 become a thousandth of themselves."""
    rows, columns = len(weight) // 16, weight.shape[1]
    kept = torch.rand(rows, columns).argsort(1) < columns // 2
    weight.mul_(torch.where(kept.repeat_interleave(16, 0), 1.0, 1e-3))


def test_a_plan_prunes_where_it_costs_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fix(monkeypatch, by_zeros)
    model, tokens = tied()
    assert isinstance(model, Tied)
    with torch.no_grad():
        nearly_in_blocks(model.out.weight)
    calibration = effc.calibrate(model, [tokens, torch.randint(0, 100, (16, 7))])
    plan = effc.plan(model, calibration, accuracy_budget=0.02, options={"passes": _OTHERS})
    assert {name: str(stored.form.pattern) for name, stored in plan.weights.items()} == {"out.weight": "16x1"}
    assert plan.measured is not None
    assert 1e-6 < plan.measured <= 0.02
    found = kept_in_a_file(plan, model, tokens, tmp_path / "plan")
    assert 1e-6 < off(found, model, tokens) <= 0.02


@pytest.mark.parametrize(
    ("channels", "outputs", "patterns"),
    [(32, 48, ["16x1", "2:4"]), (32, 40, ["2:4"]), (30, 48, ["16x1"]), (30, 40, [])],
)
def test_patterns_are_offered_that_divide_a_weight(channels: int, outputs: int, patterns: list[str]) -> None:
    model = nn.Linear(channels, outputs).eval()
    trial = Trial(model, effc.calibrate(model, [torch.randn(4, channels)]))
    assert [v.pattern for v in offered(Options(), trial) if isinstance(v, Sparsify)] == patterns


def test_a_model_with_zeros_is_not_pruned() -> None:
    model = nn.Linear(64, 64).eval()
    with torch.no_grad():
        model.weight[:, ::2] = 0
    trial = Trial(model, effc.calibrate(model, [torch.randn(4, 64)]))
    assert [v for v in offered(Options(), trial) if isinstance(v, Sparsify)] == [Sparsify(keep_channels=True)]


def test_a_plan_leaves_channels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It decides for each weight alone, and channels go from several."""
    fix(monkeypatch, by_zeros)
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)).eval(), torch.randn(16, 64)
    with torch.no_grad():
        model.get_parameter("0.weight")[16:] = 0
        model.get_parameter("0.bias")[16:] = 0
        expected = model(x)
    calibration = effc.calibrate(model, [x])
    plan = effc.plan(model, calibration, accuracy_budget=0.01, options={"passes": {**_OTHERS, "sparsity": {}}})
    assert plan.weights["0.weight"].form.dense().shape == (64, 64)
    torch.testing.assert_close(kept_in_a_file(plan, model, x, tmp_path / "plan"), expected)
    given = {"passes": {**_OTHERS, "sparsity": {"pattern": "channel", "sparsity": 0.5}}}
    with pytest.raises(OptionError, match="a plan decides for each weight alone, and channels go from all"):
        effc.plan(model, calibration, accuracy_budget=0.01, options=given)


def by_blocks(clock: KernelClock, program: Program, call: int) -> Latency:
    """A kernel takes a second, one that leaves zeros out half, of blocks of 16 outputs a third."""
    kernel = program.kernels[program.calls[call].kernel]
    rows = [o.sparsity.rows for o in kernel.operands if o.sparsity]
    return Latency(1.0 if not rows else 0.3 if rows[0] == 16 else 0.5, 0.0)


def test_a_plan_chooses_the_pattern_of_each_weight(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Blocks, which are faster, where they cost little, and single elements where these are what may go."""
    fix(monkeypatch, by_blocks)
    model = nn.Sequential(nn.Linear(64, 96), nn.Tanh(), nn.Linear(96, 64)).eval()
    with torch.no_grad():
        nearly_in_blocks(model.get_parameter("0.weight"))
        last = model.get_parameter("2.weight")
        last.mul_(torch.where(torch.rand(last.shape).argsort(1) < 48, 1.0, 1e-3))
    x = torch.randn(3, 64)
    calibration = effc.calibrate(model, [x, torch.randn(200, 64)])
    given = {"passes": {**_OTHERS, "sparsity": {"pattern": "auto", "sparsity": 0.5}}}
    plan = effc.plan(model, calibration, accuracy_budget=0.05, options=given)
    patterns = {name: str(stored.form.pattern) for name, stored in plan.weights.items()}
    assert patterns == {"0.weight": "16x1", "2.weight": "unstructured"}
    assert plan.measured is not None
    assert 1e-6 < plan.measured <= 0.05
    assert [dict(d.options)["pattern"] for d in plan.decisions if d.options] == list(patterns.values())
    kept_in_a_file(plan, model, x, tmp_path / "plan")


def test_whole_windows_are_offered_where_there_are_windows() -> None:
    model = nn.Sequential(nn.Conv2d(32, 48, 3), nn.Conv2d(48, 32, 1)).eval()
    trial = Trial(model, effc.calibrate(model, [torch.randn(1, 32, 5, 5)]))
    options = Options(passes={"sparsity": {"pattern": "auto", "sparsity": 0.5}})
    skipped = {v.pattern: v.skip for v in offered(options, trial) if isinstance(v, Sparsify)}
    assert skipped == {"unstructured": (), "4x1": (), "16x1": (), "1x16": (), "16xkernel": ("1.weight",)}


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"pattern": "auto"}, "pattern='auto' needs 'sparsity'"),
        ({"pattern": "auto", "sparsity": 0.5, "method": "wanda"}, "method='wanda' needs the activations"),
        ({"pattern": "auto", "sparsity": 0.5, "rearrange": True}, "choose such a pattern"),
    ],
)
def test_what_auto_needs(given: dict[str, Any], text: str) -> None:
    with pytest.raises(OptionError, match=text):
        Options(passes={"sparsity": given})


def test_auto_is_for_plans() -> None:
    model = nn.Linear(64, 64).eval()
    options: dict[str, Any] = {"passes": {"sparsity": {"pattern": "auto", "sparsity": 0.5}}}
    fast = torch.compile(model, backend="effc", options=options)
    with (
        torch.no_grad(),
        pytest.raises(Exception, match=r"which only a plan measures: give these passes to effc\.plan"),
    ):
        fast(torch.randn(3, 64))
