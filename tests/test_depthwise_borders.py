"""Depthwise convolutions add their zero borders while they read: no kernel fills a padded copy, and the results are eager's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from exactness import assert_exact
from torch import Tensor, nn
from torch.nn import functional as F

import effc
from effc.compiler.codegen.cpu.target import Target


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()
    torch.manual_seed(11)


class Between(nn.Module):
    """A depthwise convolution between two of 1x1, so that its image lies as kernels write it."""

    def __init__(self, channels: int, kernel: int, stride: int, padding: int | tuple[int, int], dilation: int) -> None:
        super().__init__()
        self.before = nn.Conv2d(8, channels, 1)
        self.depthwise = nn.Conv2d(channels, channels, kernel, stride, padding, dilation, groups=channels)
        self.after = nn.Conv2d(channels, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.after(F.relu6(self.depthwise(F.relu6(self.before(x)))))
        return y


def pads(function: Callable[..., object], *inputs: Tensor) -> int:
    """Kernels that fill a padded copy."""
    with torch.no_grad():
        report = effc.explain(function, *inputs)
    return sum("pad" in k.name for graph in report.graphs for region in graph.regions for k in region.kernels)


CASES: dict[str, tuple[int, int, int, int | tuple[int, int], int]] = {
    "3x3": (32, 3, 1, 1, 1),
    "strided": (32, 3, 2, 1, 1),
    "5x5": (16, 5, 1, 2, 1),
    "7x7": (48, 7, 1, 3, 1),
    "odd channels": (37, 3, 1, 1, 1),
    "dilated": (16, 3, 1, 2, 2),
    "one side": (16, 3, 1, (0, 1), 1),
    "more than the kernel": (16, 3, 1, 4, 1),
}


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (14, 13), (15, 30), (5, 57)])
@pytest.mark.parametrize("case", CASES)
def test_exact(case: str, size: tuple[int, int]) -> None:
    module, x = Between(*CASES[case]), torch.randn(2, 8, *size)
    if case == "one side" and size[0] < 3:
        pytest.skip("the image is smaller than the kernel")
    with torch.no_grad():
        assert_exact(module, (x,), torch.compile(module, backend="effc"))


@pytest.mark.parametrize("case", ["3x3", "strided", "5x5", "7x7", "odd channels", "one side"])
def test_no_padded_copy(case: str) -> None:
    assert pads(Between(*CASES[case]), torch.randn(1, 8, 14, 14)) == 0


@pytest.mark.parametrize("name", ["avx2", "x86-64"])
@pytest.mark.parametrize("case", ["3x3", "strided", "5x5"])
def test_lesser_targets(case: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target = Target.named(name)
    monkeypatch.setattr(Target, "host", staticmethod(lambda: target))
    module = Between(*CASES[case])
    with torch.no_grad():
        assert_exact(module, (torch.randn(1, 8, 9, 15),), torch.compile(module, backend="effc"))


@pytest.mark.parametrize("size", [(13, 15), (4, 31)])
@pytest.mark.parametrize("case", CASES)
def test_bfloat16(case: str, size: tuple[int, int]) -> None:
    module = Between(*CASES[case]).bfloat16()
    with torch.no_grad():
        assert_exact(module, (torch.randn(1, 8, *size).bfloat16(),), torch.compile(module, backend="effc"))


def test_dynamic_sizes() -> None:
    module = Between(*CASES["3x3"])
    compiled = torch.compile(module, backend="effc", dynamic=True)
    with torch.no_grad():
        for shape in ((2, 8, 9, 11), (3, 8, 14, 7), (1, 8, 5, 30)):
            assert_exact(module, (torch.randn(shape),), compiled)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_special_values_reach_their_neighbours_only(value: float) -> None:
    module, x = Between(*CASES["3x3"]).depthwise, torch.randn(1, 32, 12, 17)
    x[0, 3, 0, 0] = x[0, 5, 11, 16] = x[0, 7, 6, 8] = value
    with torch.no_grad():
        ours, eager = torch.compile(module, backend="effc")(x), module(x)
    assert torch.equal(ours.isnan(), eager.isnan())
    torch.testing.assert_close(ours, eager, equal_nan=True)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation", "size"),
    [(3, 1, 1, 1, (5, 9)), (3, 2, 1, 1, (14, 14)), (5, 1, 2, 1, (9, 20)), (3, 1, 2, 2, (9, 9)), (3, 1, 4, 1, (1, 1))],
)
def test_special_weights_stay_inside_the_image(
    kernel: int, stride: int, padding: int, dilation: int, size: tuple[int, int]
) -> None:
    """An infinite weight, or NaN, that would meet the border has no part in the sum."""
    module = Between(37, kernel, stride, padding, dilation).bfloat16()
    weight = module.depthwise.weight.data
    weight[3, 0, 0, 0] = weight[9, 0, kernel - 1, kernel // 2] = torch.inf
    weight[7, 0, kernel // 2, kernel - 1], weight[5, 0, kernel - 1, 1] = -torch.inf, torch.nan
    depthwise, image = module.depthwise, torch.randn(2, 37, *size).relu().bfloat16()
    identity = torch.eye(37).bfloat16()[:, :, None, None]

    def function(x: Tensor) -> Tensor:
        result: Tensor = depthwise(F.conv2d(x, identity).relu())
        return result

    with torch.no_grad():
        ours = torch.compile(function, backend="effc", options={"fallback": "error"})(image)
        bias = module.depthwise.bias
        assert bias is not None
        expected = bias.double()[:, None, None].expand(ours.shape).clone()
        for tap in range(kernel**2):
            down, along = divmod(tap, kernel)
            alone = torch.zeros(37, 1, kernel, kernel, dtype=torch.float64)
            alone[:, :, down, along] = 1
            x, inside = (
                F.conv2d(t, alone, None, stride, padding, dilation, groups=37)
                for t in (image.double(), torch.ones(image.shape, dtype=torch.float64))
            )
            expected += torch.where(inside > 0, x * weight[:, 0, down, along].double()[:, None, None], 0)
    torch.testing.assert_close(ours.double(), expected, rtol=2.0**-7, atol=1e-2, equal_nan=True)


def test_what_else_reads_the_padded_image_gets_it() -> None:
    """Another reader, the caller, a border of other than zeros: then it lies in memory."""

    def returned(x: Tensor, narrow: Tensor, wide: Tensor) -> tuple[Tensor, Tensor]:
        y = F.pad(torch.tanh(x), (1, 1, 1, 1))
        return F.conv2d(y, narrow, groups=16), y

    def read(x: Tensor, narrow: Tensor, wide: Tensor) -> Tensor:
        y = F.pad(torch.tanh(x), (1, 1, 1, 1))
        return F.conv2d(y, narrow, groups=16) + F.conv2d(y, wide)

    def ones(x: Tensor, narrow: Tensor, wide: Tensor) -> Tensor:
        return F.conv2d(F.pad(torch.tanh(x), (1, 1, 1, 1), value=1.0), narrow, groups=16)

    inputs = torch.randn(2, 16, 9, 10), torch.randn(16, 1, 3, 3), torch.randn(16, 16, 3, 3)
    for graph in (returned, read, ones):
        assert_exact(graph, inputs, torch.compile(graph, backend="effc"))
        assert pads(graph, *inputs) > 0


@pytest.mark.parametrize("kernel", [3, 7])
def test_a_result_in_planes_of_channels_is_copied_there(kernel: int) -> None:
    """Lanes are channels: stored one by one into planes, each would take a line of its own."""
    module = nn.Conv2d(24, 24, kernel, padding=kernel // 2, groups=24)
    for x in (torch.randn(2, 24, 13, 9), torch.randn(2, 24, 13, 9).contiguous(memory_format=torch.channels_last)):
        with torch.no_grad():
            torch._dynamo.reset()
            assert_exact(module, (x,), torch.compile(module, backend="effc"), strides=True)
            torch._dynamo.reset()
            last = effc.explain(module, x).graphs[0].regions[0].kernels[-1].name
        assert (last == "copy") == x.is_contiguous()
