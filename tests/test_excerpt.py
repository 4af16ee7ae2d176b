"""Pieces of a model around some of its weights: the kernels there are those that the whole model has, and so is their price."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

import effc
from effc.compiler.capture.recording import Recording
from effc.compiler.compress.compressor import Compressed
from effc.compiler.ir.options import Options
from effc.compiler.ir.site import sites_of
from effc.planning.captured import Asked
from effc.planning.feeders import Feeders
from effc.planning.pricing import pricing
from effc.planning.sketch import Sketch
from effc.planning.trial import Trial
from effc.planning.units import units_of


class Net(nn.Module):
    """Convolutions with residuals, then linear layers."""

    def __init__(self, blocks: int = 8) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(32, 32, 3, padding=1) for _ in range(blocks))
        self.head, self.last = nn.Linear(32, 64), nn.Linear(64, 48)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = x + torch.relu(conv(x))
        y: Tensor = self.last(torch.relu(self.head(x.mean((2, 3)))))
        return y


class Twice(nn.Module):
    """The first weight is read by the last product too."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(9))

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.layers, self.layers[0]):
            x = torch.relu(layer(x))
        return x


class Skips(nn.Module):
    """Later convolutions read what earlier ones have made, joined."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(5))
        self.up = nn.ModuleList(nn.Conv2d(32, 16, 3, padding=1) for _ in range(5))

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for conv in self.down:
            x = torch.relu(conv(x))
            kept.append(x)
        for conv in self.up:
            x = torch.relu(conv(torch.cat([x, kept.pop()], 1)))
        return x


class Far(nn.Module):
    """The last product reads what a kernel before the first has made for it alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.far = nn.ModuleList(nn.Linear(64, 64) for _ in range(8)), nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        early = F.gelu(x).softmax(-1)
        for layer in self.layers:
            x = torch.relu(layer(x))
        y: Tensor = x + self.far(early)
        return y


def trial_of(model: nn.Module, *shape: int) -> Trial:
    trial = Trial(model.eval(), effc.calibrate(model, [torch.randn(*shape) for _ in range(2)]))
    trial.compile(Options())
    return trial


def asked(trial: Trial, passes: dict[str, Any]) -> Callable[[set[str] | None], Recording]:
    """Lowers a model by ``passes`` around some weights, or all of it."""
    options = Options(passes=passes)
    made: list[Compressed] = trial.compress(options)

    def lowered(around: set[str] | None) -> Recording:
        (found,) = trial.lower([Asked(options, made, around)])
        assert found is not None
        return found

    return lowered


def codes(trial: Trial) -> dict[str, Any]:
    return {"quantize": {"activations": "tensor", "calibration": trial.calibration}}


def kernels(recording: Recording, weight: str) -> set[str]:
    return {s.spec.key() for s in sites_of(recording.programs) if any(p.startswith(weight) for p in s.params)}


def test_kernels_around_a_weight_are_those_of_the_whole_model() -> None:
    trial = trial_of(Net(), 1, 32, 9, 11)
    lowered = asked(trial, codes(trial))
    whole = lowered(None)
    for weight in ("convs.0.weight", "convs.4.weight", "head.weight", "last.weight"):
        part = lowered({weight})
        assert kernels(part, weight) == kernels(whole, weight) != set()
        assert 0 < len(sites_of(part.programs)) < len(sites_of(whole.programs))


@pytest.mark.parametrize(
    ("model", "shape", "weight"),
    [
        (Twice, (9, 64), "layers.0.weight"),
        (Skips, (1, 16, 11, 13), "up.4.weight"),
        (Skips, (1, 16, 11, 13), "down.1.weight"),
        (Far, (9, 64), "far.weight"),
    ],
)
def test_a_price_around_a_weight_is_that_in_the_whole_model(
    model: type[nn.Module], shape: tuple[int, ...], weight: str
) -> None:
    """With the kernels that work for it, however far they stand; but where a result lies may depend on who reads it far behind."""
    trial, options = trial_of(model(), *shape), Options()
    plain, prices = trial.compile(options), pricing(options)
    trial.time(plain)
    (unit,) = (unit for unit in units_of(plain) if weight in unit.params)
    lowered = asked(trial, {"low_rank": {"rank_ratio": 0.25}})
    part, whole = (Sketch.of(lowered(around), prices) for around in ({weight}, None))
    assert len(part.sites) < len(whole.sites)
    one, other = (unit.taken(sketch, Feeders.found(sketch))[1].seconds for sketch in (part, whole))
    assert one == pytest.approx(other, rel=0.05)


def test_pruned_weights_that_are_products_are_lowered_whole() -> None:
    """Of weights and their masks: which of these a variant changes, their names do not tell."""
    model = Net()
    for conv in model.convs:
        prune.l1_unstructured(conv, "weight", 0.5)
    trial = trial_of(model, 1, 32, 9, 11)
    lowered = asked(trial, codes(trial))
    assert len(sites_of(lowered({"head.weight"}).programs)) >= len(model.convs)
