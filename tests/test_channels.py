"""``passes={"sparsity": {"pattern": "channel", …}}``: channels that go with all that is coupled with them.

That the rewritten graph computes what eager PyTorch makes of it is held by ``check=True``, which compares every region.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from channel_cases import Random, masked, removed
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

import effc
from effc.compiler.capture import record
from effc.compiler.capture.recording import Recording


def run(model: nn.Module, x: Any, sparsity: float | None = 0.4, **more: Any) -> tuple[Tensor, Recording]:
    passes = more.pop("passes", {})
    given = {"pattern": "channel", **({} if sparsity is None else {"sparsity": sparsity}), **more}
    torch._dynamo.reset()
    with torch.no_grad(), record() as recording:
        options: dict[str, Any] = {"passes": {"sparsity": given, **passes}, "check": True}
        inputs = x if isinstance(x, tuple) else (x,)
        return torch.compile(model, backend="effc", options=options)(*inputs), recording


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def shapes(recording: Recording) -> dict[str, list[int]]:
    """Of the constants that stand for parameters, by name."""
    found = removed(recording)
    return {s.name: list(found.tensors[s.constant].shape) for s in found.slices}


# -- the numbers --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(16))
def test_random_networks_compute_what_the_masked_ones_do(seed: int) -> None:
    model = Random(seed).eval()
    x = torch.randn(2, 3, 9, 7)
    calibration = effc.calibrate(model, [torch.randn(4, 3, 9, 7)]) if seed % 2 else None
    more = {} if calibration is None else {"method": "wanda", "calibration": calibration}
    found, recording = run(model, x, (0.3, 0.6)[seed % 3 % 2], **more)
    assert removed(recording).slices
    with torch.no_grad():
        expected = masked(model, removed(recording), calibration)(x.double())
    assert distance(found, expected) < 1e-5


class Transformer(nn.Module):
    """A block of grouped-query attention (8 heads on 4) and a gated MLP behind norms."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(64), nn.LayerNorm(64)
        self.query, self.key, self.value = nn.Linear(64, 64), nn.Linear(64, 32), nn.Linear(64, 32)
        self.out = nn.Linear(64, 64)
        self.gate, self.up, self.down = nn.Linear(64, 96), nn.Linear(64, 96, bias=False), nn.Linear(96, 64, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        y = self.norm1(x)
        q = self.query(y).view(b, t, 8, 8).transpose(1, 2)
        k, v = (p(y).view(b, t, 4, 8).transpose(1, 2).repeat_interleave(2, 1) for p in (self.key, self.value))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, 64))
        y = self.norm2(x)
        found: Tensor = x + self.down(F.silu(self.gate(y)) * self.up(y))
        return found


def test_heads_and_hidden_units() -> None:
    """Heads go with those that share their keys; what the norms look at stays."""
    torch.manual_seed(0)
    model, x = Transformer().eval(), torch.randn(2, 5, 64)
    calibration = effc.calibrate(model, [torch.randn(4, 7, 64)])
    found, recording = run(model, x, 0.4, method="wanda", calibration=calibration)
    cut = shapes(recording)
    heads = cut["key.weight"][0] // 8
    assert 1 <= heads < 4
    assert cut["query.weight"] == [16 * heads, 64]
    assert cut["query.bias"] == [16 * heads]
    assert cut["value.weight"] == [8 * heads, 64]
    assert cut["out.weight"] == [64, 16 * heads]
    assert cut["gate.weight"] == cut["up.weight"] == cut["down.weight"][::-1]
    assert cut["gate.weight"][0] < 96
    assert not {"norm1.weight", "norm2.weight", "out.bias"} & cut.keys()
    with torch.no_grad():
        assert distance(found, masked(model, removed(recording), calibration)(x.double())) < 1e-5
    notes = "\n".join(recording.notes)
    assert f"query.weight loses {4 - heads} of 4 heads or groups of 16 channels, with 3 weights" in notes
    assert "down.weight keeps its output channels: aten." in notes


def test_least_squares_make_up_for_more_than_means() -> None:
    """Where channels are correlated; in the layer that reads them, on fresh data."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 128), nn.ReLU(), nn.Linear(128, 32)).eval()
    calibration = effc.calibrate(model, [torch.randn(500, 16) for _ in range(4)], held_out=0)
    x = torch.randn(300, 16)
    with torch.no_grad():
        exact = model(x)
        errors = {
            method: distance(run(model, x, 0.5, method=method, calibration=calibration)[0], exact)
            for method in ("magnitude", "wanda", "sparsegpt")
        }
    assert errors["wanda"] < 0.9 * errors["magnitude"], errors
    assert errors["sparsegpt"] < 0.7 * errors["wanda"], errors


class Paths(nn.Module):
    """Two hidden layers alike, one of which hardly counts."""

    def __init__(self) -> None:
        super().__init__()
        self.loud, self.quiet = (nn.Sequential(nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, 16)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.loud(x) + 0.03 * self.quiet(x)
        return found


@pytest.mark.parametrize("by_sample", [True, False])
@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_gradients_say_which_group_loses(method: str, by_sample: bool) -> None:
    """As many elements go; without gradients both layers lose alike, and with them the one of which the output shows little: also where
    samples are too few for sums over each.
    """
    torch.manual_seed(0)
    model, x = Paths().eval(), torch.randn(300, 32)
    errors, left = [], []
    for probe in (None, "values"):
        batch = torch.randn(500, 32) if by_sample else torch.randn(10, 50, 32)
        calibration = effc.calibrate(model, [batch], sensitivity=probe)
        found, recording = run(model, x, 0.3, method=method, calibration=calibration)
        cut = shapes(recording)
        left.append([cut.get(f"{path}.0.weight", [128])[0] for path in ("loud", "quiet")])
        errors.append(distance(found, model(x).detach()))
        assert any("and gradients" in note for note in recording.notes) == (probe is not None)
    assert abs(left[0][0] - left[0][1]) <= 32
    assert left[1][0] == 128
    assert sum(left[0]) == sum(left[1])
    assert errors[1] < 0.2 * errors[0], errors


class Opposed(nn.Module):
    """Two layers read 64 hidden units, of which 16 cancel out in their sum, and no layer shows that alone."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.one, self.other = nn.Linear(32, 64), nn.Linear(64, 16), nn.Linear(64, 16)
        self.cancelling = torch.randperm(64)[:16]
        with torch.no_grad():
            self.other.weight[:, self.cancelling] = -self.one.weight[:, self.cancelling]

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.hidden(x))
        found: Tensor = self.one(y) + self.other(y)
        return found


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_gradients_see_a_unit_as_a_whole(method: str) -> None:
    """What all layers that read it make of its loss together."""
    torch.manual_seed(0)
    model, x = Opposed().eval(), torch.randn(50, 32)
    calibration = effc.calibrate(model, [torch.randn(300, 32)], sensitivity="values")
    found, recording = run(model, x, 0.25, method=method, calibration=calibration)
    assert shapes(recording)["hidden.weight"] == [48, 32]
    assert distance(found, model(x).detach()) < 1e-5


class Shapes(nn.Module):
    """``how`` says what happens to the 16 channels between two convolutions."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.first = nn.Conv2d(3, 2 if how == "squeeze" else 16, 3)
        self.made = nn.Linear(3, 16 * 16)
        self.turned = nn.ConvTranspose2d(16, 16, 3, groups=4)
        self.weight = nn.Parameter(torch.randn(16, 1, 1, 16) / 4)  # as it lies in memory
        self.second = nn.Conv2d({"squeeze": 2, "glu": 8}.get(how, 16), 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first(x))
        if self.how == "weights from activations":
            y = F.conv2d(y, self.made(x.mean((0, 2, 3))).view(16, 16, 1, 1))
        elif self.how == "groups of a transposed convolution":
            y = self.turned(y)
        elif self.how == "glu":
            y = F.glu(y, 1)
        elif self.how == "squeeze":  # of what has two channels; none where one is left
            y = y.squeeze(1)
        else:
            y = F.conv2d(y, self.weight.permute(0, 3, 1, 2))
        found: Tensor = self.second(torch.tanh(y))
        return found


@pytest.mark.parametrize(
    ("how", "some"),
    [
        ("weights from activations", True),
        ("groups of a transposed convolution", False),
        ("glu", True),
        ("squeeze", True),
        ("a permutation", True),
    ],
)
def test_shapes(how: str, some: bool) -> None:
    """Whether ``some`` of the channels that ``second`` reads go."""
    torch.manual_seed(0)
    model, x = Shapes(how).eval(), torch.randn(2, 3, 6, 7)
    found, recording = run(model, x, 0.5)
    assert ("second.weight" in shapes(recording)) == some
    assert found.shape == model(x).shape
    if how != "a permutation":
        with torch.no_grad():
            assert distance(found, masked(model, removed(recording))(x.double())) < 1e-5


def test_under_autocast() -> None:
    """What makes up for channels is added to outputs of another dtype than the weight's."""
    model, x = layers()
    calibration = effc.calibrate(model, [torch.randn(64, 32)])
    with torch.autocast("cpu", torch.bfloat16):
        found, recording = run(model, x, 0.4, method="wanda", calibration=calibration)
    assert found.dtype == torch.bfloat16
    with torch.no_grad():
        assert distance(found, masked(model, removed(recording), calibration)(x.double())) < 0.02


# -- what stays ---------------------------------------------------------------------------------------------------
class Kept(nn.Module):
    """``how`` says what reads the hidden channels, besides the second layer."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.first, self.second, self.how = nn.Linear(32, 64), nn.Linear(64, 32), how

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = torch.relu(self.first(x))
        if self.how == "flip":
            y = y.flip(-1)
        if self.how == "softmax":
            y = torch.softmax(y, -1)
        return (self.second(y), y) if self.how == "output" else (self.second(y),)


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("output", "they reach the output of this graph"),
        ("flip", "aten.flip.default at test_channels.py:"),
        ("softmax", "needs all of them"),
        ("skip", "option 'skip' names second.weight"),
    ],
)
def test_channels_that_have_to_stay(how: str, why: str) -> None:
    torch.manual_seed(0)
    model, x = Kept(how).eval(), torch.randn(5, 32)
    found, recording = run(model, x, 0.5, skip=["second.*"] if how == "skip" else [])
    assert removed(recording).slices == []
    assert any(n.startswith("first.weight keeps its output channels: ") and why in n for n in recording.notes)
    with torch.no_grad():
        assert distance(found[0], model(x)[0]) < 1e-5


@pytest.mark.parametrize(
    ("fill", "message"),
    [(float("nan"), "0.weight: the weight holds NaN, infinity"), (0.0, "0.weight: all of the weight is 0")],
)
def test_weights_that_cannot_be_pruned(fill: float, message: str) -> None:
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8)).eval()
    nn.init.constant_(model.get_parameter("0.weight"), fill)
    with pytest.raises(Exception, match=message):
        run(model, torch.randn(3, 32))


def test_a_share_is_needed() -> None:
    with pytest.raises(Exception, match="pattern='channel' needs 'sparsity'"):
        run(nn.Linear(8, 8).eval(), torch.randn(3, 8), None)


# -- with everything else -----------------------------------------------------------------------------------------
def layers() -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 8)
    ).eval(), torch.randn(5, 32)


def test_what_is_left_may_be_quantized() -> None:
    """By a calibration of the whole model."""
    model, x = layers()
    calibration = effc.calibrate(model, [torch.randn(64, 32)])
    passes = {
        "quantize": {"weights": "int8", "activations": "tensor", "smoothing": "smoothquant", "calibration": calibration}
    }
    found, recording = run(model, x, 0.4, method="wanda", calibration=calibration, passes=passes)
    (compressed,) = recording.compressed
    assert len(compressed.stages[0].weights) == 2
    with torch.no_grad():
        assert 0 < distance(found, masked(model, removed(recording), calibration)(x.double())) < 0.03


def test_refresh_keeps_the_structure() -> None:
    model, x = layers()
    calibration = effc.calibrate(model, [torch.randn(64, 32)])
    given = {"pattern": "channel", "sparsity": 0.4, "method": "sparsegpt", "calibration": calibration}
    torch._dynamo.reset()
    with torch.no_grad(), record() as recording:
        options: dict[str, Any] = {"passes": {"sparsity": given}}
        fast = torch.compile(model, backend="effc", options=options)
        before = fast(x)
        for tensor in (model.get_parameter("4.weight"), model.get_parameter("4.bias")):
            tensor.mul_(3)
        with pytest.warns(UserWarning, match="not the weights that effc compressed"):
            assert distance(fast(x), model(x)) < 1e-5
        effc.refresh(model)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert distance(fast(x), 3 * before) < 1e-5
    assert removed(recording).slices


def test_saved(tmp_path: Path) -> None:
    model, x = layers()
    passes = {"sparsity": {"pattern": "channel", "sparsity": 0.4}}
    effc.save(model, x, tmp_path / "model", options={"passes": passes})
    loaded, expected = effc.load(tmp_path / "model")(x), run(model, x)[0]
    assert distance(loaded, expected) < 1e-6


def test_channels_of_masked_weights() -> None:
    """Of which `torch.nn.utils.prune` computes the products in each call: those that it masks go first."""
    model, x = layers()
    prune.ln_structured(model[0], "weight", 0.25, n=2, dim=0)
    dead = ~model.get_buffer("0.weight_mask").bool().any(1)
    found, recording = run(model, x, 0.3)
    assert not (removed(recording).out["0.weight"] & dead.numpy()).any()
    prune.remove(model[0], "weight")
    with torch.no_grad():
        assert distance(found, masked(model, removed(recording))(x.double())) < 1e-5
