"""Plans of two passes at one weight: factors, then bytes, where both gain; within the budget, kept in files.

Times are not the machine's: a kernel takes as long as it has bytes of weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from fixed_times import by_bytes, by_dtype, fix
from plan_files import kept_in_a_file
from test_low_rank_convolutions import of_tucker
from test_quantize import Tied, codes_read, compiled, off, tied
from torch import Tensor, nn

import effc
from effc.compiler.capture import record
from effc.compiler.capture.recording import Recording
from effc.compiler.ir.options import Options
from effc.planning.captured import Asked
from effc.planning.offers import offers
from effc.planning.plans import Plan
from effc.planning.pricing import pricing
from effc.planning.trial import Trial
from effc.planning.variants import offered

THEN = "low_rank then quantize"
#: What else a plan would try, and what it tries of the two.
NO_ZEROS = {"sparsity": False}
BOTH: dict[str, dict[str, Any]] = {
    "low_rank": {"rank_ratio": 0.25, "method": "output"},
    "quantize": {"activations": "token"},
}


@pytest.fixture(autouse=True)
def fixed_times() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        fix(patch, by_bytes)
        yield


def nearly_of_rank(weight: Tensor, rank: int) -> None:
    """A thousandth of it is left beside a product of this rank."""
    out, width = weight.shape
    weight.mul_(1e-3).add_(torch.randn(out, rank) @ torch.randn(rank, width) / width)


def low_ranked() -> tuple[Tied, Tensor]:
    model, tokens = tied()
    assert isinstance(model, Tied)
    with torch.no_grad():
        nearly_of_rank(model.out.weight, 32)
    return model, tokens


def calibrated(model: nn.Module, x: Tensor) -> effc.Calibration:
    """For ``x``, with rows enough that no rank below a layer's holds all that it meets."""
    more = torch.randint(0, 100, (40, 7)) if not x.is_floating_point() else torch.randn(8, *x.shape[1:])
    return effc.calibrate(model, [x, more, more.flip(0)], rows=512)


def planned(model: nn.Module, x: Tensor, budget: float, **passes: dict[str, Any]) -> Plan:
    calibration = calibrated(model, x)
    given = {name: {**chosen, "calibration": calibration} for name, chosen in {**BOTH, **passes}.items()}
    return effc.plan(model, calibration, accuracy_budget=budget, options={"passes": {**NO_ZEROS, **given}})


def taken(plan: Plan, name: str) -> str:
    """The pass at the site of this name's weight, the product."""
    (found,) = [d.pass_name for d in plan.decisions if d.site.startswith(f"{name}/contract")]
    return found


def test_factors_in_bytes_are_taken_where_they_pay(tmp_path: Path) -> None:
    model, tokens = low_ranked()
    plan = planned(model, tokens, 0.03)
    assert {"out.weight", "out.weight:left", "out.weight:right"} <= set(plan.weights)
    assert [taken(plan, name) for name in ("query.weight", "out.weight")] == ["quantize", THEN]
    chosen = dict(next(d for d in plan.decisions if d.pass_name == THEN).options)
    assert chosen["low_rank.rank_ratio"] == 0.25
    assert chosen["quantize.weights"] == "int8"
    assert plan.measured is not None
    assert 1e-5 < plan.measured <= 0.03
    found = kept_in_a_file(plan, model, tokens, tmp_path / "plan")
    assert 1e-5 < off(found, model, tokens) <= 0.03
    torch._dynamo.reset()
    with torch.no_grad(), record() as recording:
        compiled(model, plan=plan)(tokens)
    assert {"query.weight", "out.weight:left", "out.weight:right"} <= codes_read(recording)


def test_weights_of_full_rank_get_no_factors() -> None:
    model, tokens = tied()
    plan = planned(model, tokens, 0.03)
    assert {d.pass_name for d in plan.decisions} == {"dense", "quantize"}


def test_factors_of_a_convolution_in_bytes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1)).eval()
    with torch.no_grad():
        for n in ("0", "2"):
            model.get_parameter(f"{n}.weight").copy_(of_tucker(64, 64, 16, 16, 3, 3) / 20)
    x = torch.randn(4, 64, 9, 11)
    plan = planned(model, x, 0.1, quantize={"activations": "tensor"})
    assert {"0.weight", "0.weight:kernel0", "0.weight:kernel1", "0.weight:kernel2"} <= set(plan.weights)
    assert plan.measured is not None
    assert 1e-5 < plan.measured <= 0.1
    kept_in_a_file(plan, model, x, tmp_path / "plan")


def test_its_error_is_that_of_both() -> None:
    """Estimated for the layer from its trial: what factors lose and what bytes lose, as independent; near to what the model then loses."""
    model, tokens = low_ranked()
    calibration = calibrated(model, tokens)
    options, trial = Options(passes=NO_ZEROS), Trial(model, calibration)
    variants = [v for v in offered(options, trial) if v.name == "low_rank" or getattr(v, "activations", "") == "float"]
    made = offers(trial, trial.compile(options.exact()), options, variants, pricing(options))
    (site,) = [name for name in made.candidates if name.startswith("out.weight")]
    errors = {c.pass_name: c.error for c in made.candidates[site] if dict(c.options).get("weights") != "int4"}
    assert errors[THEN] == pytest.approx(math.hypot(errors["low_rank"], errors["quantize"]), rel=1.0)
    assert errors[THEN] > errors["low_rank"]
    (combined,) = [
        c for c in made.candidates[site] if c.pass_name == THEN and dict(c.options)["low_rank.rank_ratio"] == 0.25
    ]
    weights = made.weights["out.weight", combined.options]
    assert set(weights) == {"out.weight", "out.weight:left", "out.weight:right"}


def test_only_what_gains_alone_is_combined() -> None:
    """Pruned weights are not, unless the options ask for both: no kernel of codes leaves zeros out."""
    model, tokens = low_ranked()
    calibration, seen = effc.calibrate(model, [tokens]), []
    for passes in (
        {"quantize": False},
        {"low_rank": False},
        {"low_rank": False, "quantize": {}, "sparsity": {"pattern": "2:4"}},
    ):
        options, trial = Options(passes={**NO_ZEROS, **passes}), Trial(model, calibration)
        made = offers(trial, trial.compile(options.exact()), options, offered(options, trial), pricing(options))
        seen.append({c.pass_name for found in made.candidates.values() for c in found} - {"dense"})
    assert seen[:2] == [{"low_rank"}, {"quantize"}]
    assert {"sparsity", "quantize"} <= seen[2]


def test_what_takes_long_is_made_only_where_its_draft_may_win() -> None:
    """Bytes are as fast as codes of four bits where both take a second, and far more exact: no weight is rounded by GPTQ."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)).eval(), torch.randn(9, 64)
    options = Options(passes={"sparsity": False, "low_rank": False})
    trial = Trial(model, effc.calibrate(model, [x]))
    with pytest.MonkeyPatch.context() as patch:
        fix(patch, by_dtype)
        made = offers(trial, trial.compile(options.exact()), options, offered(options, trial), pricing(options))
        every = offers(
            trial, trial.compile(options.exact()), options, offered(options, trial), pricing(options), smaller=True
        )
    kinds = {dict(c.options)["weights"] for found in made.candidates.values() for c in found if c.options}
    assert kinds == {"int8"}
    kinds = {dict(c.options)["weights"] for found in every.candidates.values() for c in found if c.options}
    assert kinds == {"int8", "int4"}


def test_what_is_far_over_the_budget_is_not_lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of random weights, or a quarter of their directions, lose far more than asked; factors of a weight that has them do not."""
    lowered: set[str] = set()
    lower = Trial.lower

    def watched(trial: Trial, tried: Sequence[Asked]) -> list[Recording | None]:
        lowered.update(name for one in tried for name, _ in one.options.passes)
        return lower(trial, tried)

    monkeypatch.setattr(Trial, "lower", watched)
    options = Options()
    for make, expected in ((tied, {"quantize"}), (low_ranked, {"quantize", "low_rank"})):
        lowered.clear()
        model, tokens = make()
        trial = Trial(model, calibrated(model, tokens))
        offers(trial, trial.compile(options), options, offered(options, trial), pricing(options), most=0.004)
        assert lowered == expected


def test_fewer_ranks_are_tried_where_more_would_hold_as_many_numbers() -> None:
    """Of 64 by 64, three eighths of the rank are rounded to half of it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64)).eval()
    with torch.no_grad():
        for layer in (model[0], model[2]):
            assert isinstance(layer, nn.Linear)
            layer.weight.copy_(torch.randn(64, 16) @ torch.randn(16, 64) / 16)
    calibration = effc.calibrate(model, [torch.randn(512, 64) for _ in range(4)], rows=512)
    trial, options = Trial(model, calibration), Options(passes={"quantize": False, "sparsity": False})
    made = offers(trial, trial.compile(options), options, offered(options, trial), pricing(options), most=0.04)
    ratios = {dict(c.options)["rank_ratio"] for found in made.candidates.values() for c in found if c.options}
    assert ratios == {0.25}
