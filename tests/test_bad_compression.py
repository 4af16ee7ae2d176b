"""What cannot be compressed as asked, on linear layers and convolutions: errors that name the layer and say what to do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_quantize import compiled
from torch import Tensor, nn

import effc

_FACTORS = {"low_rank": {"rank_ratio": 0.5, "method": "output"}}
_WANDA, _SPARSEGPT = ({"sparsity": {"pattern": "2:4", "method": method}} for method in ("wanda", "sparsegpt"))
_CHANNELS = {"sparsity": {"pattern": "channel", "sparsity": 0.3, "method": "sparsegpt"}}
_BYTES = {"quantize": {"activations": "tensor"}}
_THRESHOLDS = {"activation_sparsity": {"method": "chess"}}


class Layers(nn.Module):
    """Two layers; ``log`` between them makes NaN of what is negative, which the result does not show."""

    def __init__(self, kind: str, width: int = 64, log: bool = False) -> None:
        super().__init__()
        if kind == "linear":
            self.first: nn.Module = nn.Linear(32, width)
            self.second: nn.Module = nn.Linear(width, 96)
        else:
            self.first = nn.Conv2d(32, width, 3, padding=1)
            self.second = nn.Conv2d(width, 96, 3 if kind == "conv3x3" else 1)
        self.log = log

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        found: Tensor = self.second(torch.log(y) if self.log else torch.relu(y))
        return found.nan_to_num() if self.log else found


class Gated(nn.Module):
    def __init__(self, width: int = 128, log: bool = False) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(width, 320, bias=False) for _ in range(2))
        self.down, self.log = nn.Linear(320, width, bias=False), log

    def forward(self, x: Tensor) -> Tensor:
        x = torch.log(x) if self.log else x
        found: Tensor = self.down(nn.functional.silu(self.gate(x)) * self.up(x))
        return found.nan_to_num() if self.log else found


def rows(kind: str) -> Tensor:
    return torch.randn(9, 32) if kind == "linear" else torch.randn(2, 32, 6, 5)


def refused(
    model: nn.Module, x: Tensor, passes: dict[str, dict[str, Any]], calibration: effc.Calibration | None
) -> str:
    """The error of compiling ``model``."""
    given = {} if calibration is None else {"calibration": calibration}
    options = {name: {**options, **given} for name, options in passes.items()}
    with torch.no_grad(), pytest.raises(Exception) as caught:  # noqa: PT011  # torch wraps it
        compiled(model, passes=options)(x)
    return str(caught.value)


KINDS = ("linear", "conv1x1", "conv3x3")
CALIBRATED = (_FACTORS, _WANDA, _SPARSEGPT, _CHANNELS, _BYTES)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("passes", CALIBRATED, ids=str)
def test_a_calibration_of_a_layer_of_another_width(kind: str, passes: dict[str, dict[str, Any]]) -> None:
    x, model, other = rows(kind), Layers(kind).eval(), Layers(kind, width=48).eval()
    found = refused(model, x, passes, effc.calibrate(other, [x]))
    assert "second.weight: its calibration has 48 channels and the weight 64: calibrate this model" in found


def test_a_calibration_of_a_convolution_in_groups_of_another_width() -> None:
    def layers(width: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(32, width, 1), nn.Conv2d(width, 96, 3, groups=4)).eval()

    x = torch.randn(2, 32, 6, 5)
    found = refused(layers(64), x, _BYTES, effc.calibrate(layers(48), [x]))
    assert "1.weight: its calibration has 48 channels and the weight 64: calibrate this model" in found


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_a_layer_of_another_width(kind: str) -> None:
    x, model, other = rows(kind), Layers(kind).eval(), Layers(kind, width=48).eval()
    passes = {"low_rank": {"rank_ratio": 0.25, "method": "output", "skip": ["second*"]}}
    found = refused(model, x, passes, effc.calibrate(other, [x], sensitivity="values"))
    assert "first.weight: its calibration has 48 output channels and the weight 64: calibrate this model" in found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("passes", CALIBRATED, ids=str)
def test_activations_of_calibration_that_hold_nan(kind: str, passes: dict[str, dict[str, Any]]) -> None:
    x, model = rows(kind), Layers(kind, log=True).eval()
    found = refused(model, x, passes, effc.calibrate(model, [x]))
    assert "second.weight: the activations in calibration hold NaN or infinity: look at the batches and at" in found


def test_an_output_that_holds_nan_names_the_layer_before() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4), nn.Linear(4, 2)).eval()
    nn.init.constant_(model.get_parameter("2.bias"), float("nan"))
    with pytest.raises(
        effc.InputError, match=r"output for batch 0 holds NaN: .*; 3\.weight is the first weight that meets NaN"
    ):
        effc.calibrate(model, [torch.randn(5, 8)])


def test_thresholds_by_a_calibration_of_another_model() -> None:
    x, model = torch.rand(1, 128), Gated().eval()
    found = refused(model, x, _THRESHOLDS, effc.calibrate(Gated(96).eval(), [torch.rand(5, 96)]))
    assert "gate.weight: its calibration has 96 channels and the weight 128: calibrate this model" in found
    odd = Gated(log=True).eval()
    found = refused(odd, x, _THRESHOLDS, effc.calibrate(odd, [torch.rand(5, 128) - 0.5]))
    assert "gate.weight: the activations in calibration hold NaN or infinity" in found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("passes", [{"low_rank": {"rank": 8}}, {"sparsity": {"pattern": "2:4"}}], ids=str)
def test_a_weight_of_zeros_or_with_nan(kind: str, passes: dict[str, dict[str, Any]]) -> None:
    x = rows(kind)
    zeros = "the weight holds zeros only" if "low_rank" in passes else "all of the weight is 0"
    for value, why in ((0.0, zeros), (float("nan"), "the weight holds NaN")):
        model = Layers(kind).eval()
        nn.init.constant_(model.get_parameter("second.weight"), value)
        assert f"second.weight: {why}" in refused(model, x, passes, None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("pattern", "why"),
    [("3:5", "64 input channels are no multiple of 5"), ("1x24", "of 24"), ("7x1", "96 output channels are no multiple of 7")],
)  # fmt: skip
def test_a_pattern_that_does_not_divide(kind: str, pattern: str, why: str) -> None:
    share = {} if ":" in pattern else {"sparsity": 0.5}
    passes = {"sparsity": {"pattern": pattern, **share, "skip": ["first*"]}}
    found = refused(Layers(kind).eval(), rows(kind), passes, None)
    assert f"second.weight: the sparsity pattern '{pattern}' does not divide a weight of shape [96, 64" in found
    assert why in found


@pytest.mark.parametrize("kind", KINDS)
def test_a_rank_above_the_full_one(kind: str) -> None:
    model, most = Layers(kind).eval(), 96 if kind == "conv3x3" else 64
    found = refused(model, rows(kind), {"low_rank": {"rank": most + 1, "skip": ["first*"]}}, None)
    assert f"rank={most + 1} is above the full rank of second.weight, [96, 64" in found
    assert f"ask for at most {most}" in found
