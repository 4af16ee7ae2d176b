"""Batches that a calibration holds out: what is compressed knows nothing of them, and errors are told by them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import effc
from effc.calibrating.held_out import count_held_out
from effc.compiler.compress.recipe import quantize
from effc.compiler.ir.budgets import Budgets
from effc.compiler.ir.options import Options
from effc.compiler.ir.plan import Plan
from effc.compiler.ir.quantization import Recipe, Scheme
from effc.metrics import relative_l2
from effc.planning.doubts import doubts
from effc.planning.proxies import output_error
from effc.planning.trial import Trial


@pytest.mark.parametrize(
    ("batches", "share", "expected"),
    [(1, 0.25, 0), (2, 0.25, 1), (3, 0.25, 1), (4, 0.25, 1), (6, 0.25, 2), (8, 0.25, 2), (16, 0.25, 4), (8, 0, 0),
     (2, 0.99, 1), (8, 0.99, 7), (8, 0.01, 1), (1, 0.99, 0)],
)  # fmt: skip
def test_how_many_are_held_out(batches: int, share: float, expected: int) -> None:
    assert count_held_out(batches, share) == expected
    found = effc.calibrate(nn.Linear(3, 2).eval(), [torch.randn(2, 3) for _ in range(batches)], held_out=share)
    assert (found.held_out, found.seen) == (expected, batches - expected)
    assert found.sites["weight"].rows == 2 * (batches - expected)


@pytest.mark.parametrize("share", [1, -0.1, 1.5, True, "a quarter", math.nan, None])
def test_what_is_no_share(share: Any) -> None:
    with pytest.raises(effc.OptionError, match=r"'held_out' is .*: expected a share of the batches"):
        effc.calibrate(nn.Linear(3, 2).eval(), [torch.randn(2, 3)], held_out=share)


def test_statistics_are_of_the_others_alone(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten(), nn.Linear(5 * 4 * 3, 7)).eval()
    batches = [torch.randn(2, 3, 6, 5) for _ in range(4)]
    batches[3] += 100
    found, others = (
        effc.calibrate(model, b, sensitivity="values", held_out=share)
        for b, share in ((batches, 0.25), (batches[:3], 0))
    )
    assert set(found.sites) == set(others.sites) == set(found.unseen) == {"0.weight", "2.weight"}
    for name, seen in found.sites.items():
        for field in ("least", "greatest", "mean", "mean_square", "sample", "second_moment", "sensitivity", "windows"):
            np.testing.assert_array_equal(getattr(seen, field), getattr(others.sites[name], field))
    assert float(found.unseen["0.weight"].least.min()) > 90
    assert found.unseen["0.weight"].second_moment is None
    judged, seen = found.judging().sites["0.weight"], found.sites["0.weight"]
    assert (judged.sample is found.unseen["0.weight"].sample, judged.greatest is seen.greatest) == (True, True)
    assert others.judging().sites["0.weight"] is others.sites["0.weight"]
    assert len(found.batches) == len(found.outputs) == 4
    assert found != effc.calibrate(model, batches, sensitivity="values", held_out=0.5)
    found.save(tmp_path / "cal")
    again = effc.Calibration.load(tmp_path / "cal")
    assert (again, again.held_out, set(again.unseen)) == (found, 1, set(found.unseen))
    np.testing.assert_array_equal(again.unseen["0.weight"].windows, found.unseen["0.weight"].windows)


def test_what_is_wrong_with_a_batch_held_out_is_said() -> None:
    model, good = nn.Linear(3, 2).eval(), torch.randn(2, 3)
    for bad, text in (
        (torch.full((2, 3), math.nan), "batch 1 holds NaN"),
        (torch.randn(2, 4), "does not take batch 1"),
    ):
        with pytest.raises(effc.InputError, match=text):
            effc.calibrate(model, [good, bad])


def test_a_weight_that_only_one_kind_of_batch_meets() -> None:
    class Either(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x: Tensor, first: bool) -> Tensor:
            y: Tensor = self.one(x) if first else self.other(x)
            return y

    x = torch.randn(5, 3)
    found = effc.calibrate(Either().eval(), [(x, True), (x, False)])
    assert (set(found.sites), set(found.unseen)) == ({"one.weight"}, {"other.weight"})
    assert set(found.judging().sites) == {"one.weight", "other.weight"}


def test_an_error_is_that_of_the_batches_held_out() -> None:
    """Weights that fit the rows they were rounded by, 40 of 64 channels, fit others less: the estimate says so."""
    torch.manual_seed(0)
    model = nn.Linear(64, 48, bias=False).eval()
    calibration = effc.calibrate(model, [torch.randn(40, 64), torch.randn(400, 64)])
    (form,) = quantize(
        {"weight": model.weight}, Scheme("int4"), Recipe(rounding="gptq"), calibration.sites["weight"]
    ).values()
    seen, judged = (
        output_error(form, model.weight.detach(), c.sites["weight"], "weight")
        for c in (calibration, calibration.judging())
    )
    x = torch.randn(4000, 64)
    with torch.no_grad():
        real = relative_l2([model(x)], [x @ form.dense().T], [x])
    assert seen < 0.8 * real
    assert judged == pytest.approx(real, rel=0.15)


def test_what_is_beyond_the_calibrated_range_counts() -> None:
    """Rows twice as large as those by which the range of the activation was found are clipped at half."""
    torch.manual_seed(0)
    model = nn.Linear(64, 48, bias=False).eval()
    rows = torch.rand(128, 64) - 0.5
    calibration = effc.calibrate(model, [rows, 2 * rows.sign()])
    (form,) = quantize({"weight": model.weight}, Scheme("int8", activations="tensor"), Recipe()).values()
    matrix = model.weight.detach()
    seen, judged = (
        output_error(form, matrix, c.sites["weight"], "weight") for c in (calibration, calibration.judging())
    )
    assert seen < 0.02
    assert judged == pytest.approx(0.75, abs=0.02)


def test_the_whole_models_error_is_of_the_batches_held_out() -> None:
    """Of the last two, which the model meets with another weight than it was calibrated with."""
    model = nn.Linear(6, 5, bias=False).eval()
    batches = [torch.randn(4, 6) for _ in range(8)]
    for batch in batches[6:]:
        batch[:, 1:] = 0
    trial = Trial(model, effc.calibrate(model, batches))
    compiled = trial.compile(Options())
    with torch.no_grad():
        model.weight[:, 0] *= 1.5
    found = trial.error(compiled, "relative_l2")
    assert found.value == pytest.approx(0.5, rel=1e-5)
    assert found.margin is not None
    assert found.margin > 1e-3  # the others, of which it changes less, vary


def made(measured: float | None, margin: float | None, budget: float, exact: bool) -> Plan:
    from test_planner import fake_site  # its sites

    from effc.compiler.ir.candidate import Latency
    from effc.compiler.ir.plan import Decision

    site = fake_site("a")
    decision = Decision("a", "x", (), (site.spec,), False, Latency(1.0), Latency(1.0), 0.0 if exact else 0.1, "")
    return Plan("m", "c", "h", "top1_disagreement", Budgets(budget), measured, (decision,), margin=margin)


def test_what_a_plans_error_does_not_tell_is_said() -> None:
    assert doubts(made(0.01, 0.001, 0.02, False), 2) == []
    assert "calibrate with three batches or more" in doubts(made(0.01, None, 0.02, False), 1)[0]
    assert "were compressed by" in doubts(made(0.01, None, 0.02, False), 0)[0]
    assert "too few to tell top1_disagreement to 0.01" in doubts(made(0.0, 0.05, 0.01, True), 2)[0]
    assert "calibration's batches are too few" in doubts(made(0.0, 0.05, 0.01, True), 0)[0]
    assert doubts(made(0.0, 0.005, 0.01, True), 2) == []
    assert doubts(made(0.0, None, 0.0, True), 0) == []
