"""Blocks of images: tiles of lines through all stages equal the layers one by one, at borders, odd sizes, strides and dilations."""

from __future__ import annotations

import pytest
import torch
from block_models import Forced
from exactness import assert_exact
from torch import Tensor, nn


class Inverted(nn.Module):
    """MobileNetV2's block: 1x1, depthwise, 1x1, and the input added where the shapes allow."""

    def __init__(
        self, inputs: int, middle: int, outputs: int, kernel: int = 3, stride: int = 1, dilation: int = 1, padding: int | None = None
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


def whole(model: nn.Module, x: Tensor, forced: Forced, stages: int) -> None:
    """The model is one block of so many stages, and exact."""
    x = x.to(memory_format=torch.channels_last)
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


@pytest.mark.parametrize("shape", [(1, 9, 7), (3, 5, 31), (2, 17, 1), (5, 3, 4), (2, 2, 2)])
def test_odd_sizes(shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    batch, height, width = shape
    model = Inverted(9, 37, 9)
    whole(model, torch.randn(batch, 9, height, width), Forced(monkeypatch, 2), 3)
