"""Pieces of a model around some of its weights: the kernels there are those that the whole model has."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import effc
from effc.compiler.capture.recording import Recording
from effc.compiler.ir.options import Options
from effc.compiler.ir.site import sites_of
from effc.planning.trial import Trial


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


def trial_of(model: nn.Module, *shape: int) -> Trial:
    trial = Trial(model.eval(), effc.calibrate(model, [torch.randn(*shape) for _ in range(2)]))
    trial.compile(Options())
    return trial


def lowered(trial: Trial, skip: tuple[str, ...]) -> Recording:
    passes = {"quantize": {"activations": "tensor", "calibration": trial.calibration, "skip": skip}}
    (found,) = trial.lower([Options(passes=passes)])
    assert found is not None
    return found


def kernels(recording: Recording, weight: str) -> set[str]:
    return {s.spec.key() for s in sites_of(recording.programs) if any(p.startswith(weight) for p in s.params)}


def test_kernels_around_a_weight_are_those_of_the_whole_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Net().eval()
    trial = trial_of(model, 1, 32, 9, 11)
    for weight in ("convs.0.weight", "convs.4.weight", "head.weight", "last.weight"):
        skip = tuple(name for name, _ in model.named_parameters() if name != weight)
        part = lowered(trial, skip)
        with monkeypatch.context() as patch:
            patch.setattr("effc.planning.captured._FEW", 1000)
            whole = lowered(trial, skip)
        assert kernels(part, weight) == kernels(whole, weight) != set()
        assert 0 < len(sites_of(part.programs)) < len(sites_of(whole.programs))


def test_what_changes_many_weights_is_lowered_whole() -> None:
    trial = trial_of(Net(), 1, 32, 9, 11)
    found = {p.partition(":")[0] for s in sites_of(lowered(trial, ()).programs) for p in s.params}
    assert found == {name for name, p in trial.model.named_parameters() if p.dim() > 1}


def test_pruned_weights_that_are_products_are_lowered_whole() -> None:
    """Of weights and their masks: which of these a variant changes, their names do not tell."""
    model = Net()
    for conv in model.convs:
        prune.l1_unstructured(conv, "weight", 0.5)
    trial = trial_of(model, 1, 32, 9, 11)
    assert len(sites_of(lowered(trial, ("head.*", "last.*", "convs.1*")).programs)) >= len(model.convs)
