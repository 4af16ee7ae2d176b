"""``passes={"sparsity": {"rearrange": True, …}}``: channels in another order compute the same, and blocks then keep more."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pruned_models import compiled, off_by, run
from torch import Tensor, nn

import effc
from effc.compiler.capture.recording import Recording
from effc.compiler.compress.channels.orders import grouped
from effc.compiler.compress.pruning.by_pruning import ByPruning


class Residual(nn.Module):
    """Norms, a residual, a depthwise and a grouped convolution, a concatenation, a pool and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.norm = nn.BatchNorm2d(32)
        self.wide = nn.Conv2d(32, 64, 3, padding=1)
        self.depthwise = nn.Conv2d(64, 64, 3, padding=1, groups=64)
        self.back = nn.Conv2d(64, 32, 3, padding=1)
        self.other = nn.Conv2d(32, 32, 3, padding=1, groups=4)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.back(F.silu(self.depthwise(torch.relu(self.wide(x)))))
        x = torch.cat([F.max_pool2d(x, 2), F.avg_pool2d(self.other(x), 2)], 1)
        y: Tensor = self.head(x.mean((2, 3)))
        return y


class Halves(nn.Module):
    """Half of the channels pass a ReLU and the others do not: they must not mix."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(32, 128)
        self.second = nn.Linear(128, 64)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.first(x).chunk(2, -1)
        y: Tensor = self.second(torch.cat([torch.relu(a), b], -1))
        return y


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(48, 128)
        self.gate = nn.Linear(48, 128, bias=False)
        self.down = nn.Linear(128, 48)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(F.silu(self.gate(x)) * self.up(x)) + x
        return y


def residual() -> tuple[nn.Module, Tensor]:
    model = Residual().eval()
    nn.init.uniform_(model.get_buffer("norm.running_mean"), -1, 1)
    nn.init.uniform_(model.get_buffer("norm.running_var"), 0.5, 2)
    return model, torch.randn(2, 3, 12, 10)


def halves() -> tuple[nn.Module, Tensor]:
    return Halves().eval(), torch.randn(5, 32)


def gated() -> tuple[nn.Module, Tensor]:
    return Gated().eval(), torch.randn(2, 5, 48)


def striped(model: nn.Module, names: list[str]) -> None:
    """Outputs need one of four quarters of the input channels, in turn: neighbours share none, every fourth all."""
    for name in names:
        weight = model.get_parameter(name)
        out, channels = weight.shape[:2]
        mine = torch.arange(out)[:, None] % 4 == torch.randperm(channels)[None] % 4
        with torch.no_grad():
            weight.mul_(torch.where(mine, 1.0, 1e-3).view(out, channels, *[1] * (weight.dim() - 2)))


def notes(recording: Recording) -> list[str]:
    return [note for note in recording.notes if "are rearranged" in note]


@pytest.mark.parametrize("make", [residual, halves, gated])
@pytest.mark.parametrize("pattern", ["16x1", "1x16", "8x8", "4xkernel"])
def test_the_order_changes_no_result(make: Any, pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is pruned behind it."""
    monkeypatch.setattr(ByPruning, "refusal", lambda self, site, weight: "it is left")
    model, x = make()
    striped(model, [n for n, p in model.named_parameters() if p.dim() > 1 and min(p.shape[:2]) > 3])
    skip = ["stem*", "head*", "depthwise*", "other*"] if make is residual else []
    options = {"pattern": pattern, "sparsity": 0.7, "skip": skip, "rearrange": True}
    found, recording = run(model, x, options)
    assert notes(recording)
    assert off_by(found, model, x) < 1e-5


def test_blocks_that_line_up_keep_more() -> None:
    model, x = residual()
    striped(model, ["wide.weight"])
    options = {"pattern": "16x1", "sparsity": 0.7, "skip": ["stem*", "head*", "other*", "back*"]}
    errors = []
    for rearrange in (False, True):
        torch._dynamo.reset()
        found, recording = run(model, x, {**options, "rearrange": rearrange}, check=True)
        errors.append(off_by(found, model, x))
    assert errors[1] < 0.5 * errors[0]
    assert any(note.startswith("wide.weight: 64 channels are rearranged") for note in notes(recording))


def test_halves_that_are_treated_otherwise_do_not_mix() -> None:
    model, x = halves()
    striped(model, ["first.weight"])
    found, recording = run(model, x, {"pattern": "16x1", "sparsity": 0.7, "rearrange": True, "skip": ["second*"]})
    assert [note.split(" channels")[0] for note in notes(recording)] == ["first.weight: 64", "first.weight: 64"]
    assert off_by(found, model, x) < 0.05


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_calibration_follows_the_channels(method: str) -> None:
    """Channels of very different sizes: statistics at the wrong ones would be worse by far."""
    model, x = gated()
    striped(model, ["up.weight", "gate.weight"])
    with torch.no_grad():
        model.get_parameter("up.weight")[::4] *= 30
    calibration = effc.calibrate(model, [torch.randn(64, 48)])
    options = {"pattern": "16x1", "sparsity": 0.7, "method": method, "calibration": calibration, "rearrange": True}
    found, recording = run(model, x, options, check=True)
    assert notes(recording)
    torch._dynamo.reset()
    plain, _ = run(model, x, {**options, "rearrange": False})
    assert off_by(found, model, x) < off_by(plain, model, x)


def test_new_values_stand_in_the_same_order() -> None:
    model, x = gated()
    striped(model, ["up.weight", "gate.weight"])
    options = {"pattern": "16x1", "sparsity": 0.7, "rearrange": True}
    fast = compiled(model, passes={"sparsity": options})
    with torch.no_grad():
        before = fast(x)
        model.get_parameter("up.weight").mul_(2)
        effc.refresh(model)
        found = fast(x)
        torch._dynamo.reset()
        torch.testing.assert_close(found, compiled(model, passes={"sparsity": options})(x))
    assert not torch.equal(found, before)


@pytest.mark.parametrize("size", [1, 3, 16])
def test_an_order_holds_every_row_once(size: int) -> None:
    assert sorted(grouped(torch.rand(37, 20), size, 0.5).tolist()) == list(range(37))


def test_rows_that_need_the_same_stand_together() -> None:
    scores = torch.rand(32, 64) * 1e-3
    for row in range(32):
        scores[row, (row % 4) * 16 : (row % 4 + 1) * 16] += 1
    order = grouped(scores, 8, 0.75)
    assert all(len({int(row) % 4 for row in part}) == 1 for part in order.split(8))


class Heads(nn.Module):
    """Attention, whose heads of 16 channels stay whole, and a convolution in groups of 8."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(48, 64) for _ in range(3))
        self.out = nn.Linear(64, 48)
        self.wide, self.tied = nn.Conv1d(48, 64, 1), nn.Conv1d(64, 64, 3, padding=1, groups=8)
        self.back = nn.Conv1d(64, 48, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (4, 16)).transpose(1, 2) for part in (self.query, self.key, self.value))
        x = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        y: Tensor = self.back(torch.relu(self.tied(torch.relu(self.wide(x.transpose(1, 2))))))
        return y


def test_channels_that_move_together_stay_and_the_report_says_so() -> None:
    model, x = Heads().eval(), torch.randn(2, 5, 48)
    _, recording = run(model, x, {"pattern": "16x1", "sparsity": 0.5, "skip": ["tied*"], "rearrange": True})
    for name, width in (("query.weight", 16), ("wide.weight", 8)):
        assert not any(note.startswith(name) for note in notes(recording))
        said = f"{name} keeps the order of its channels: {width} of {name} would move together"
        assert any(note.startswith(said) for note in recording.notes)


# -- refusals -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"pattern": "2:4", "rearrange": True}, "'rearrange' puts channels together that one block or group holds"),
        ({"pattern": "unstructured", "sparsity": 0.5, "rearrange": True}, "choose such a pattern"),
        ({"rearrange": True}, "choose such a pattern"),
        ({"pattern": "16x1", "sparsity": 0.5, "rearrange": 1}, "'rearrange' is 1: expected True or False"),
    ],
)
def test_wrong_options(options: dict[str, Any], text: str) -> None:
    with pytest.raises(effc.OptionError, match=text):
        effc.Options(passes={"sparsity": options})


def test_a_plan_does_not_rearrange() -> None:
    model, x = gated()
    given = {"passes": {"sparsity": {"pattern": "16x1", "sparsity": 0.5, "rearrange": True}}}
    with pytest.raises(effc.OptionError, match="channels are rearranged in all weights that are coupled"):
        effc.plan(model, effc.calibrate(model, [x]), accuracy_budget=0.1, options=given)
