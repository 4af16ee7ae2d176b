"""Models with weights to prune, and what their tests look at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from effc.compiler.capture import record
from effc.compiler.capture.recording import Recording
from effc.compiler.compress.pruning.prune import prune
from effc.compiler.compress.pruning.pruned import PrunedWeight
from effc.compiler.ir.pattern import Pattern


class Net(nn.Module):
    """Two linear layers on one activation, one behind them, and a table that is the head too."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(100, 128)
        self.query = nn.Linear(128, 256)
        self.value = nn.Linear(128, 256, bias=False)
        self.out = nn.Linear(256, 128)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        y = torch.relu(self.query(x)) * self.value(x)
        return nn.functional.linear(self.out(y), self.embedding.weight)


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, stride=2, padding=1)
        self.wide = nn.Conv2d(32, 64, 3, padding=1)
        self.groups = nn.Conv2d(64, 64, 3, padding=1, groups=4)
        self.point = nn.Conv2d(64, 128, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.groups(torch.relu(self.wide(torch.relu(self.stem(x))))))
        found: Tensor = self.point(x)
        return found


class Transposed(nn.Module):
    """A weight [in, out], as GPT-2's layers hold it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(128, 96) / 8)
        self.bias = nn.Parameter(torch.randn(96))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight)


LAYERS = ("query.weight", "value.weight", "out.weight")


def net() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Net().eval(), torch.randint(0, 100, (2, 7))


def convolutions() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Convolutions().eval(), torch.randn(2, 3, 18, 14)


def compiled(model: nn.Module, **options: Any) -> Callable[..., Tensor]:
    return torch.compile(model, backend="effc", options=options)


def run(model: nn.Module, x: Tensor, sparsity: dict[str, Any], **options: Any) -> tuple[Tensor, Recording]:
    with torch.no_grad(), record() as recording:
        return compiled(model, passes={"sparsity": sparsity}, **options)(x), recording


def forms(recording: Recording) -> dict[str, PrunedWeight]:
    """By parameter, of the one graph."""
    (compressed,) = recording.compressed
    found = {name: w.form for stage in compressed.stages for name, w in stage.weights.items()}
    assert all(isinstance(form, PrunedWeight) for form in found.values())
    return found  # type: ignore[return-value]


def packed(recording: Recording) -> list[str]:
    """How constant factors are packed."""
    return [d.function for program, _ in recording.programs for d in program.derived]


def put(model: nn.Module, weights: dict[str, Tensor]) -> None:
    for name, weight in weights.items():
        model.get_parameter(name).data = weight


def pruned(model: nn.Module, pattern: str, sparsity: float, names: tuple[str, ...] = LAYERS) -> None:
    """Prune the model itself, by magnitude; output channels are any."""
    weights = {name: model.get_parameter(name).detach() for name in names}
    if pattern == "channel":
        left = {name: torch.randperm(len(w)) >= sparsity * len(w) for name, w in weights.items()}
        put(model, {name: w * left[name][:, None] for name, w in weights.items()})
    else:
        put(model, prune(weights, Pattern.parse(pattern), sparsity))


def off_by(found: Tensor, model: nn.Module, x: Tensor) -> float:
    """Relative L2."""
    with torch.no_grad():
        expected = model(x)
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def same(found: Tensor, model: nn.Module, x: Tensor) -> bool:
    return off_by(found, model, x) < 1e-5
