"""Squeeze-excitation as two blocks: the first sums each line of what it stores, the second scales it; equal to the layers one by one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from block_models import Forced
from exactness import assert_exact
from torch import Tensor, nn

from effc.compiler.codegen.cpu.block import choice, cost
from effc.compiler.pipeline import blocks

Squeeze = Callable[[Tensor], Tensor]


def mean(x: Tensor) -> Tensor:
    return x.mean((2, 3), keepdim=True)


def largest(x: Tensor) -> Tensor:
    return x.amax((2, 3), keepdim=True)


def rooted(x: Tensor) -> Tensor:
    return torch.sqrt(x.sum((2, 3), keepdim=True).abs() / 7) + 1


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


@pytest.fixture
def forced(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], Forced]:
    """Makes every block that can be made, with tiles of so many lines; such that reduce all lines before others."""

    def make(lines: int | None) -> Forced:
        made = Forced(monkeypatch, lines)
        monkeypatch.setattr(blocks, "saved", lambda found: len(found.spec.stages) + 9.0 * (found.plan.fold is not None))
        return made

    return make


def compiled(model: nn.Module, x: Tensor, forced: Forced) -> tuple[list[int], Callable[[Tensor], Tensor], Tensor]:
    """Stages of the blocks in their order; the compiled model, which is exact; its input."""
    x = x.to(memory_format=torch.channels_last)
    fast, kernels = forced.run(model, x)
    assert_exact(model, (x,), fast)
    return [len(k.stages) for k in kernels if k.template == "block"], fast, x


@pytest.mark.parametrize(
    ("lines", "shape", "stride", "dilation", "kernel", "squeeze"),
    [
        (1, (1, 9, 11), 1, 1, 3, mean),
        (3, (2, 23, 19), 2, 1, 3, largest),
        (16, (3, 7, 7), 1, 2, 3, rooted),
        (2, (2, 5, 31), 2, 1, 5, mean),
        (None, (1, 2, 2), 1, 1, 7, mean),
    ],
)
def test_two_blocks(
    lines: int | None,
    shape: tuple[int, int, int],
    stride: int,
    dilation: int,
    kernel: int,
    squeeze: Squeeze,
    forced: Callable[[int | None], Forced],
) -> None:
    batch, height, width = shape
    model = Excited(9, 37, kernel, stride, dilation, squeeze)
    made = forced(lines)
    stages, _, _ = compiled(model, torch.randn(batch, 9, height, width), made)
    assert stages[0] == 3, made.refused
    assert len(stages) == 2


@pytest.mark.parametrize("squeeze", [by_column, spread])
def test_what_no_line_has_a_part_of(squeeze: Squeeze, forced: Callable[[int | None], Forced]) -> None:
    """A mean that keeps the columns, and a reduction that needs the mean first, are in no block with what they reduce."""
    stages, _, _ = compiled(Excited(16, 48, squeeze=squeeze), torch.randn(1, 16, 12, 9), forced(2))
    assert stages[0] == 2


def test_only_the_mean_leaves(forced: Callable[[int | None], Forced]) -> None:
    stages, _, _ = compiled(Head(), torch.randn(2, 16, 21, 10), forced(4))
    assert stages == [2]


def test_nan_spoils_its_image_alone_and_threads_do_not_change_the_bits(forced: Callable[[int | None], Forced]) -> None:
    _, fast, x = compiled(Excited(16, 32), torch.randn(3, 16, 31, 33), forced(3))
    threads = torch.get_num_threads()
    with torch.no_grad():
        given = fast(x)
        try:
            torch.set_num_threads(1)
            assert torch.equal(given, fast(x))
        finally:
            torch.set_num_threads(threads)
        x[1, 3, 10, 4] = float("nan")
        got = fast(x).isnan()
    assert got[1].all()
    assert not got[[0, 2]].any()


def test_channels_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no line of all channels fits L2."""
    monkeypatch.setattr(choice, "MOST_BYTES", 24 * 1024)
    made = Forced(monkeypatch, None)
    model, x = Excited(8, 96, 5), torch.randn(1, 8, 19, 17).to(memory_format=torch.channels_last)
    fast, kernels = made.run(model, x)
    assert [k.schedule.get("slices", 1) > 1 for k in kernels if len(k.stages) == 3] == [True], made.refused
    assert_exact(model, (x,), fast)


class Pooled(nn.Module):
    """A depthwise convolution with a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise, self.gate = nn.Conv2d(48, 48, 3, padding=1, groups=48), nn.Conv2d(48, 48, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(x)
        z: Tensor = y * self.gate(mean(y))
        return z


def test_a_tile_of_what_is_stored_and_pooled_fits_the_caches(
    forced: Callable[[int | None], Forced], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where others read it too, so that it is no scratch memory: lines of 3840 bytes, two of which fit."""
    monkeypatch.setattr(cost, "L1_BYTES", 1024)
    monkeypatch.setattr(cost, "L2_BYTES", 8 * 1024)
    model, x = Pooled(), torch.randn(1, 48, 20, 20).to(memory_format=torch.channels_last)
    fast, kernels = forced(None).run(model, x)
    assert_exact(model, (x,), fast)
    assert [k.schedule["lines"] for k in kernels if k.template == "block"] == [2]
