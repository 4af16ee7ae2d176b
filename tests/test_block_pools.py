"""Squeeze-excitation as two blocks: the first sums each line of what it stores, the second scales it; equal to the layers one by one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from block_models import Forced
from exactness import assert_exact
from torch import Tensor, nn

Squeeze = Callable[[Tensor], Tensor]


def mean(x: Tensor) -> Tensor:
    return x.mean((2, 3), keepdim=True)


def largest(x: Tensor) -> Tensor:
    return x.amax((2, 3), keepdim=True)


def of_squares(x: Tensor) -> Tensor:
    return torch.sqrt((x * x).sum((2, 3), keepdim=True) / 7) + 1


def overall(x: Tensor) -> Tensor:
    return x.mean((1, 2, 3), keepdim=True)


def by_column(x: Tensor) -> Tensor:
    return x.mean(2, keepdim=True)


def spread(x: Tensor) -> Tensor:
    return x.var((2, 3), keepdim=True)


class Excited(nn.Module):
    """EfficientNet's block: 1x1, depthwise, a gate by a ``squeeze`` of it, 1x1, and the input added where the shapes allow."""

    def __init__(
        self, width: int, middle: int, kernel: int = 3, stride: int = 1, dilation: int = 1, squeeze: Squeeze = mean
    ) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(width, middle, 1, bias=False), nn.BatchNorm2d(middle), nn.SiLU())
        padding = dilation * (kernel // 2)
        self.depthwise = nn.Conv2d(middle, middle, kernel, stride, padding, dilation, groups=middle)
        self.gate = nn.Sequential(nn.Conv2d(middle, 5, 1), nn.SiLU(), nn.Conv2d(5, middle, 1), nn.Sigmoid())
        self.project, self.squeeze, self.adds = nn.Conv2d(middle, width, 1), squeeze, stride == 1
        if squeeze is overall:
            self.gate = nn.Sequential(nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.silu(self.depthwise(self.expand(x)))
        z: Tensor = self.project(y * self.gate(self.squeeze(y)))
        return x + z if self.adds else z


class Head(nn.Module):
    """What a classifier begins with: nothing but the mean leaves."""

    def __init__(self) -> None:
        super().__init__()
        self.widen, self.classify = nn.Conv2d(16, 48, 1), nn.Linear(48, 7)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.classify(nn.functional.silu(self.widen(x)).mean((2, 3)))
        return result


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(11)


def compiled(model: nn.Module, x: Tensor, forced: Forced) -> tuple[list[int], Callable[[Tensor], Tensor], Tensor]:
    """Stages of the blocks in their order; the compiled model, which is exact; its input."""
    x = x.to(memory_format=torch.channels_last)
    fast, kernels = forced.run(model, x)
    assert_exact(model, (x,), fast)
    return [len(k.stages) for k in kernels if k.template == "block"], fast, x


@pytest.mark.parametrize(
    ("lines", "stride", "dilation", "kernel"),
    [(1, 1, 1, 3), (3, 2, 1, 3), (16, 1, 2, 3), (2, 2, 1, 5), (None, 1, 1, 7)],
)
def test_two_blocks(
    lines: int | None, stride: int, dilation: int, kernel: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, forced = Excited(16, 48, kernel, stride, dilation), Forced(monkeypatch, lines)
    assert compiled(model, torch.randn(1, 16, 23, 19), forced)[0] == [3, 2], forced.refused


@pytest.mark.parametrize("shape", [(1, 9, 11), (3, 5, 31), (2, 7, 7), (2, 2, 2), (1, 3, 64)])
def test_odd_sizes(shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    batch, height, width = shape
    stages, _, _ = compiled(Excited(9, 37), torch.randn(batch, 9, height, width), Forced(monkeypatch, 2))
    assert stages == [3, 2]


@pytest.mark.parametrize("squeeze", [largest, of_squares, overall])
def test_other_reductions(squeeze: Squeeze, monkeypatch: pytest.MonkeyPatch) -> None:
    stages, _, _ = compiled(Excited(16, 48, squeeze=squeeze), torch.randn(2, 16, 12, 9), Forced(monkeypatch, 2))
    assert stages == [3, 2]


@pytest.mark.parametrize("squeeze", [by_column, spread])
def test_what_no_line_has_a_part_of(squeeze: Squeeze, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mean that keeps the columns, and a reduction that needs the mean first, stay kernels of their own."""
    stages, _, _ = compiled(Excited(16, 48, squeeze=squeeze), torch.randn(1, 16, 12, 9), Forced(monkeypatch, 2))
    assert stages == [2, 2]


def test_only_the_mean_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    stages, _, _ = compiled(Head(), torch.randn(2, 16, 21, 10), Forced(monkeypatch, 4))
    assert stages == [2]


def test_nan_spoils_its_image_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Excited(16, 32)
    _, fast, x = compiled(model, torch.randn(3, 16, 20, 9), Forced(monkeypatch, 3))
    x[1, 3, 10, 4] = float("nan")
    with torch.no_grad():
        got = fast(x).isnan()
    assert got[1].all()
    assert not got[[0, 2]].any()


def test_threads_do_not_change_the_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    _, fast, x = compiled(Excited(16, 96), torch.randn(3, 16, 31, 33), Forced(monkeypatch, 4))
    threads = torch.get_num_threads()
    with torch.no_grad():
        given = fast(x)
        try:
            torch.set_num_threads(1)
            assert torch.equal(given, fast(x))
        finally:
            torch.set_num_threads(threads)
