"""``effc bisect`` on a model in which one op is compiled wrongly, and on one in which none is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import effc.bisect
from effc import cli
from effc.bisect import bisect
from effc.compiler import opt
from effc.compiler.capture import backend
from effc.compiler.ir.errors import LoweringError, OptionError
from effc.compiler.ir.options import Options


class Model(nn.Module):
    """Two linear layers with a tanh between, and pointwise ops around."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 7), nn.Linear(7, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.second(torch.tanh(self.first(x * 2)) + 1)) - 3


class Waves(nn.Module):
    """A sine between linear layers: its gradient, and nothing else, has a cosine."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.second(torch.sin(self.norm(self.first(x)))))


def _mistaken(monkeypatch: pytest.MonkeyPatch, one: str, other: str) -> None:
    """The pipeline takes ``other`` for ``one``."""
    build = backend.builder

    def broken(options: Options) -> Any:
        make = build(options)
        return lambda text: make(text.replace(one, other))

    monkeypatch.setattr(effc.bisect, "builder", broken)


@pytest.fixture
def wrong_tanh(monkeypatch: pytest.MonkeyPatch, cache_dir: Path) -> None:
    _mistaken(monkeypatch, "math.tanh", "math.cos")


@pytest.fixture
def wrong_cosine(monkeypatch: pytest.MonkeyPatch, cache_dir: Path) -> None:
    _mistaken(monkeypatch, "math.cos", "math.exp")


@pytest.fixture
def refused_tanh(monkeypatch: pytest.MonkeyPatch, cache_dir: Path) -> None:
    """The pipeline fails on a tanh."""
    build = backend.builder

    def broken(options: Options) -> Any:
        make = build(options)

        def refuse(text: str) -> Any:
            if "math.tanh" in text:
                raise LoweringError("no tanh today")
            return make(text)

        return refuse

    monkeypatch.setattr(effc.bisect, "builder", broken)


@pytest.mark.usefixtures("wrong_tanh")
def test_a_wrong_op_is_found_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    culprit = bisect(Model().eval(), (torch.randn(2, 5),), Options())
    assert culprit is not None
    assert culprit.nodes == 1 < culprit.of
    assert "tanh" in culprit.failure.reason
    path = tmp_path / "reproducer.mlir"
    path.write_text(culprit.reproducer())
    arguments = path.read_text().splitlines()[0].removeprefix("// RUN: effc-opt %s ").split()
    assert opt.main([str(path), *arguments]) == 0
    assert "llvm.func @k_" in capsys.readouterr().out


@pytest.mark.usefixtures("wrong_cosine")
def test_a_wrong_op_of_the_backward_is_found_alone() -> None:
    model = Waves()
    inputs = (torch.randn(4, 5),)
    assert bisect(model, inputs, Options()) is None
    culprit = bisect(model, inputs, Options(), train=True)
    assert culprit is not None
    assert culprit.nodes == 1 < culprit.of
    assert "the result of aten.cos" in culprit.failure.reason
    assert all(p.grad is None for p in model.parameters())


def test_a_right_training_step(cache_dir: Path) -> None:
    assert bisect(Waves(), (torch.randn(4, 5),), Options(), train=True) is None


def test_a_training_step_needs_gradients() -> None:
    with pytest.raises(OptionError, match="nothing that the model returns has a gradient"):
        bisect(nn.Tanh(), (torch.randn(3),), Options(), train=True)


@pytest.mark.usefixtures("refused_tanh")
def test_a_region_that_does_not_lower_is_a_failure() -> None:
    culprit = bisect(Model().eval(), (torch.randn(2, 5),), Options())
    assert culprit is not None
    assert culprit.nodes == 1
    assert culprit.failure.reason == "LoweringError: no tanh today"


def test_nothing_wrong_is_said_so(cache_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "right.py"
    model.write_text("import torch\ndef model():\n    return torch.nn.Tanh(), (torch.randn(3, requires_grad=True),)\n")
    for more in ([], ["--train"]):
        assert cli.main(["bisect", f"{model}:model", "--out", str(tmp_path / "out.mlir"), *more]) == 0
        assert "nothing to bisect" in capsys.readouterr().out
    assert not (tmp_path / "out.mlir").exists()


def test_a_function_is_refused() -> None:
    with pytest.raises(OptionError, match="bisect takes a module, not builtin_function_or_method"):
        bisect(torch.tanh, (torch.randn(3),), Options())
