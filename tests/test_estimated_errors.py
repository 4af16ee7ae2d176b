"""What the planner takes a compressed weight's error for, against what its kernels give for activations that nobody has seen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_quantize import compiled
from torch import Tensor, nn

import effc
from effc.compiler.capture import record
from effc.planning.proxies import output_error

_PASSES: list[dict[str, dict[str, Any]]] = [
    {"low_rank": {"rank_ratio": 0.25, "method": "svd"}},
    {"low_rank": {"rank_ratio": 0.25, "method": "output"}},
    {"sparsity": {"pattern": "unstructured", "sparsity": 0.5}},
    {"sparsity": {"pattern": "2:4", "method": "wanda"}},
    {"sparsity": {"pattern": "16x1", "sparsity": 0.3, "method": "sparsegpt"}},
]
_OF_LINEAR: list[dict[str, dict[str, Any]]] = [
    {"quantize": {"weights": "int4"}},
    {"quantize": {"weights": "int4", "rounding": "gptq"}},
]


class Activations:
    """Channels of unequal sizes that are alike, with a mean; positions are independent, as the estimate takes them to be."""

    def __init__(self, kind: str, seed: int) -> None:
        self.kind, self.draws = kind, torch.Generator().manual_seed(seed)
        self.mixing = self._randn(64, 64) * torch.linspace(0.2, 2, 64)
        self.mean = 4 * self._randn(64)

    def __call__(self) -> Tensor:
        rows = self._randn(2 * 14 * 14, 64) @ self.mixing + self.mean
        return rows if self.kind == "linear" else rows.view(2, 14, 14, 64).permute(0, 3, 1, 2)

    def _randn(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.draws)


@pytest.mark.parametrize(
    ("kind", "passes"),
    [(kind, p) for kind in ("linear", "conv1x1", "conv3x3") for p in (*_PASSES, *_OF_LINEAR * (kind == "linear"))],
    ids=str,
)
def test_the_estimate_is_near_what_is_found(kind: str, passes: dict[str, dict[str, Any]]) -> None:
    activations = Activations(kind, seed=0)
    torch.manual_seed(0)
    layer = nn.Linear(64, 96, bias=False) if kind == "linear" else nn.Conv2d(64, 96, int(kind[-1]), bias=False)
    model = nn.Sequential(layer).eval()
    calibration = effc.calibrate(model, [activations() for _ in range(8)])
    options = {name: {**o, "calibration": calibration} for name, o in passes.items()}
    fresh = [activations() for _ in range(4)]
    fast = compiled(model, passes=options)
    with torch.no_grad(), record() as recording:
        found, exact = (torch.stack([m(x) for x in fresh]).double() for m in (fast, model))
    (compressed,) = recording.compressed
    form = compressed.stages[0].weights["0.weight"].form
    statistics = calibration.judging().sites["0.weight"]
    estimate = output_error(form, layer.weight.detach().flatten(1), statistics, "0.weight")
    assert 0.85 * estimate < float((found - exact).norm() / exact.norm()) < 1.1 * estimate
