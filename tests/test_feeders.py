"""Kernels that work for one that reads weights count in its candidates."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from fixed_times import fix
from torch import nn

import effc
from effc.compiler.ir.candidate import Latency
from effc.compiler.ir.options import Options
from effc.compiler.ir.program import Program
from effc.kernel_clock import KernelClock
from effc.planning.feeders import Feeders
from effc.planning.trial import Trial


def one_second(clock: KernelClock, program: Program, call: int) -> Latency:
    """Whatever a kernel does."""
    return Latency(1.0)


@pytest.fixture(autouse=True)
def fixed_times() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        fix(patch, one_second)
        yield


class Rows(nn.Module):
    """What quantizes rows for the layer is a kernel of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(96, 80)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layer(x)
        return y


TOKEN = {"quantize": {"weights": "int8", "activations": "token"}}


def test_what_quantizes_rows_works_for_the_product_behind_it() -> None:
    model, x = Rows().eval(), torch.randn(24, 96)
    trial = Trial(model, effc.calibrate(model, [x]))
    plain, quantized = trial.compile(Options()), trial.compile(Options(passes=TOKEN))
    assert len(plain.sites) == 1
    others = [site for site in quantized.sites if not site.params]
    assert others
    before, after = Feeders.found(plain), Feeders.found(quantized)
    assert before.of == {}
    assert list(after.of) == ["layer.weight"]
    assert after.beyond(before, ["layer.weight"]).seconds == len(others)
    assert after.beyond(after, ["layer.weight"]).seconds == 0.0
    assert after.beyond(before, ["another"]).seconds == 0.0


def test_a_plan_counts_it() -> None:
    """Every kernel takes a second, what quantizes rows for the product too."""
    model, x = Rows().eval(), torch.randn(24, 96)
    only = {"passes": {**TOKEN, "low_rank": False, "sparsity": False}}
    calibration = effc.calibrate(model, [x])
    kernels = len(Trial(model, calibration).compile(Options(passes=TOKEN)).sites)
    (decision,) = effc.plan(model, calibration, accuracy_budget=0.5, options=only).decisions
    assert [(c.pass_name, c.latency.seconds) for c in decision.considered] == [("dense", 1.0), ("quantize", kernels)]
