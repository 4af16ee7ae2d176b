"""Blocks of images: tiles of lines through all stages equal the layers one by one, at borders, odd sizes, strides and dilations."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from block_models import Forced
from exactness import assert_exact
from torch import Tensor, nn

from effc.bench.models.convfirst import ConvFirstBlock


class Inverted(nn.Module):
    """MobileNetV2's block: 1x1, depthwise, 1x1, and the input added where the shapes allow."""

    def __init__(
        self,
        inputs: int,
        middle: int,
        outputs: int,
        kernel: int = 3,
        stride: int = 1,
        dilation: int = 1,
        padding: int | None = None,
    ) -> None:
        super().__init__()
        padding = dilation * (kernel // 2) if padding is None else padding
        self.expand = nn.Sequential(nn.Conv2d(inputs, middle, 1, bias=False), nn.BatchNorm2d(middle), nn.ReLU6())
        self.depthwise = nn.Sequential(
            nn.Conv2d(middle, middle, kernel, stride, padding, dilation, groups=middle, bias=False),
            nn.BatchNorm2d(middle),
            nn.ReLU6(),
        )
        self.project = nn.Sequential(nn.Conv2d(middle, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.adds = inputs == outputs and stride == 1 and 2 * padding == dilation * (kernel - 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.adds else y


class Next(nn.Module):
    """ConvNeXt's block: depthwise, norm over the channels, two linear layers, a scale, and the input added."""

    def __init__(self, channels: int, kernel: int = 7) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.first, self.second = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)
        self.scale = nn.Parameter(torch.randn(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.second(F.gelu(self.first(y))) * self.scale
        result: Tensor = x + y.permute(0, 3, 1, 2)
        return result


class Mlp(nn.Module):
    """A transformer's second half, gated or not."""

    def __init__(self, width: int, hidden: int, gated: bool) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.gate = nn.Linear(width, hidden) if gated else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        hidden = F.gelu(self.up(y)) if self.gate is None else F.silu(self.gate(y)) * self.up(y)
        result: Tensor = x + self.down(hidden)
        return result


class Returned(Inverted):
    """What the first convolution makes is a result too."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        middle = self.expand(x)
        return self.project(self.depthwise(middle)), middle


def whole(model: nn.Module, x: Tensor, forced: Forced, stages: int) -> None:
    """The model is one block of so many stages, and exact."""
    x = x.to(memory_format=torch.channels_last) if x.ndim == 4 else x
    fast, kernels = forced.run(model, x)
    assert [len(k.stages) for k in kernels if k.template == "block"] == [stages], (
        [k.template for k in kernels],
        forced.refused,
    )
    assert_exact(model, (x,), fast)


@pytest.mark.parametrize(
    ("lines", "stride", "dilation", "kernel"),
    [(1, 1, 1, 3), (3, 2, 1, 3), (16, 1, 2, 3), (2, 2, 1, 5), (5, 1, 1, 7), (None, 1, 1, 3), (4, 2, 2, 3)],
)
def test_inverted_residuals(
    lines: int | None, stride: int, dilation: int, kernel: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Inverted(16, 48, 16, kernel, stride, dilation)
    whole(model, torch.randn(1, 16, 23, 19), Forced(monkeypatch, lines), 3)


@pytest.mark.parametrize("shape", [(1, 9, 11), (3, 5, 31), (2, 7, 7), (2, 2, 2)])
def test_odd_sizes(shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    batch, height, width = shape
    model = Inverted(9, 37, 9)
    whole(model, torch.randn(batch, 9, height, width), Forced(monkeypatch, 2), 3)


@pytest.mark.parametrize("batch", [1, 2])
def test_convnext(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole(Next(24), torch.randn(batch, 24, 11, 13), Forced(monkeypatch, 3), 4)


@pytest.mark.parametrize(("gated", "stages"), [(False, 3), (True, 4)])
def test_transformers(gated: bool, stages: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole(Mlp(48, 100, gated), torch.randn(2, 97, 48), Forced(monkeypatch), stages)


@pytest.mark.parametrize(("lines", "shape"), [(3, (2, 16, 23, 24)), (None, (1, 24, 9, 26))])
def test_grouped_convolutions(lines: int | None, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Their input lies in a border of zeros, into which the block before stores; what fills the border is in no block."""
    width = shape[1]
    model = nn.Sequential(ConvFirstBlock(width), ConvFirstBlock(width)).eval()
    x = torch.randn(shape).to(memory_format=torch.channels_last)
    fast, kernels = Forced(monkeypatch, lines).run(model, x)
    assert [len(k.stages) for k in kernels if k.template == "block"] == [3, 3]
    assert_exact(model, (x,), fast)


def test_blocks_one_behind_the_other_are_one_where_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first block's result is read by the second one's first stage, and added at its end: lines of it are kept longer."""
    model = nn.Sequential(Inverted(16, 24, 16), Inverted(16, 24, 16))
    whole(model, torch.randn(1, 16, 21, 10), Forced(monkeypatch, 4), 6)


def test_no_value_of_lines_that_are_kept_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN reaches the window around it, and nothing else."""
    model, x = Inverted(16, 32, 8), torch.randn(1, 16, 20, 9).to(memory_format=torch.channels_last)
    fast, _ = Forced(monkeypatch, 3).run(model, x)
    x[0, 3, 10, 4] = float("nan")
    with torch.no_grad():
        got = fast(x).isnan()
    assert got[:, :, 9:12, 3:6].all()
    assert got.sum() == 8 * 9


def test_threads_do_not_change_the_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = Inverted(16, 96, 16), torch.randn(3, 16, 31, 33).to(memory_format=torch.channels_last)
    fast, _ = Forced(monkeypatch, 4).run(model, x)
    with torch.no_grad():
        two = fast(x)
        torch.set_num_threads(1)
        assert torch.equal(two, fast(x))


def test_a_result_in_the_middle_stays_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = Returned(16, 48, 16), torch.randn(1, 16, 14, 14).to(memory_format=torch.channels_last)
    _, kernels = Forced(monkeypatch).run(model, x)
    assert [len(k.stages) for k in kernels] == [0, 2]


def test_a_height_that_is_known_at_run_time_only(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = Inverted(16, 48, 16), torch.randn(1, 16, 14, 14).to(memory_format=torch.channels_last)
    torch._dynamo.mark_dynamic(x, 2)
    fast, kernels = Forced(monkeypatch).run(model, x)
    assert not any(k.stages for k in kernels)
    assert_exact(model, (x,), fast)
