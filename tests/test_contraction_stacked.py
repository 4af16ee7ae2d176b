"""Depthwise convolutions whose lanes hold several taps of a channel: bytes to the last bit, bf16 within the rounding of their sums."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from contraction_cases import Case, Runner
from kernels import HOST
from quantized_cases import Weight, fake
from torch import Tensor
from torch.nn import functional as F

from effc.compiler.codegen.cpu.contraction.cast import cast
from effc.compiler.codegen.cpu.target import Target

needs_bytes = pytest.mark.skipif(not HOST.has("avx512_vnni"), reason="this CPU has no AVX512-VNNI")
needs_pairs = pytest.mark.skipif(not HOST.sums_pairs, reason="this CPU does not sum pairs of bf16 by vectors")
KINDS = [pytest.param("i8", 0, marks=needs_bytes), pytest.param("bf16", None, marks=needs_pairs)]


def depthwise(
    dtype: str,
    unsigned: int | None,
    window: tuple[int, int] = (3, 3),
    channels: int = 16,
    stride: int = 1,
    dilation: int = 1,
    size: tuple[int, int] = (4, 9),
) -> Case:
    """An image that lies channels last, as wide as the window needs; the result in i32 or bf16."""
    (height, width), (down, along) = size, window
    row = ((width - 1) * stride + (along - 1) * dilation + 1) * channels
    lhs = (row * stride, channels * stride, 1, row * dilation, channels * dilation)
    rhs, out = (0, 0, 1, along * channels, channels), (width * channels, channels, 1)
    result = "i32" if dtype == "i8" else dtype
    return Case((height, width, channels, down, along), 2, lhs, rhs, out, dtype=dtype, result=result, unsigned=unsigned)


def taps_of_lanes(runner: Runner, target: Target = HOST) -> int:
    nest = cast(runner.kernel.spec, target)
    assert not isinstance(nest, str), nest
    return nest.stacked


@pytest.mark.parametrize(("dtype", "unsigned"), KINDS)
@pytest.mark.parametrize("window", [(3, 3), (5, 5), (7, 7), (2, 2), (4, 3), (6, 2)])
@pytest.mark.parametrize("stride", [1, 3])
def test_windows(dtype: str, unsigned: int | None, window: tuple[int, int], stride: int) -> None:
    runner = Runner(depthwise(dtype, unsigned, window, channels=33, stride=stride), 1)
    assert taps_of_lanes(runner) == (2 if dtype == "bf16" else 4)
    for threads in (1, 2):
        runner.check(threads)


@pytest.mark.parametrize(("dtype", "unsigned"), KINDS)
@pytest.mark.parametrize("channels", [9, 16, 33, 130])
@pytest.mark.parametrize("size", [(1, 1), (2, 15), (9, 2)])
def test_sizes(dtype: str, unsigned: int | None, channels: int, size: tuple[int, int]) -> None:
    Runner(depthwise(dtype, unsigned, channels=channels, size=size), 1).check(2)


@needs_bytes
def test_the_weights_may_be_the_unsigned_bytes() -> None:
    runner = Runner(depthwise("i8", 1, channels=33), 1)
    assert taps_of_lanes(runner) == 4
    runner.check(2)


@pytest.mark.parametrize(("dtype", "unsigned"), KINDS)
@pytest.mark.parametrize("stride", [1, 2])
def test_dilated(dtype: str, unsigned: int | None, stride: int) -> None:
    Runner(depthwise(dtype, unsigned, channels=20, stride=stride, dilation=2), 1).check(2)


@pytest.mark.parametrize(("dtype", "unsigned"), KINDS)
def test_not_where_weights_are_unknown_or_the_window_is_a_line(dtype: str, unsigned: int | None) -> None:
    case = depthwise(dtype, unsigned)
    assert taps_of_lanes(Runner(case)) == 0
    Runner(case).check(2)
    for window in ((1, 5), (5, 1)):
        runner = Runner(depthwise(dtype, unsigned, window), 1)
        assert taps_of_lanes(runner) == 0
        runner.check(2)


# Depth, height and width of the window; height and width of the image.
VOLUMES = [((3, 3, 3), (3, 9)), ((2, 3, 3), (5, 3)), ((2, 2, 2), (2, 2)), ((3, 3, 3), (5, 9)), ((1, 3, 3), (5, 9))]


@pytest.mark.parametrize(("dtype", "unsigned"), KINDS)
@pytest.mark.parametrize(("window", "image"), VOLUMES)
def test_volumes_are_not_stacked(
    dtype: str, unsigned: int | None, window: tuple[int, int, int], image: tuple[int, int]
) -> None:
    """Where the window is as high or as wide as the image, two of its sums are one to the kernel, not to the packed weights; one plane of
    a window is two sums.
    """
    channels, depth, (deep, down, along), (height, width) = 33, 4, window, image
    row, plane = width * channels, height * width * channels
    high, wide = height - down + 1, width - along + 1
    lhs = (plane, row, channels, 1, plane, row, channels)
    rhs = (0, 0, 0, 1, down * along * channels, along * channels, channels)
    out = (high * wide * channels, wide * channels, channels, 1)
    result = "i32" if dtype == "i8" else dtype
    sizes = (depth, high, wide, channels, deep, down, along)
    runner = Runner(Case(sizes, 3, lhs, rhs, out, dtype=dtype, result=result, unsigned=unsigned), 1)
    assert bool(taps_of_lanes(runner)) == (deep == 1)
    runner.check(2)


@needs_pairs
@pytest.mark.parametrize(("window", "image"), [((3, 3, 3), (3, 9)), ((2, 3, 3), (5, 3)), ((3, 3, 3), (5, 9))])
def test_volumes_of_a_model(window: tuple[int, int, int], image: tuple[int, int]) -> None:
    torch._dynamo.reset()
    torch.manual_seed(11)
    before, weight = torch.randn(33, 33, 1, 1, 1) / 33**0.5, torch.randn(33, 1, *window)
    before, weight, x = (t.bfloat16() for t in (before, weight, torch.randn(1, 33, 7, *image)))

    def function(x: Tensor) -> Tensor:
        return F.conv3d(F.conv3d(x, before), weight, groups=33)

    with torch.no_grad():
        got = torch.compile(function, backend="effc", options={"fallback": "error"})(x)
    expected = F.conv3d(F.conv3d(x.double(), before.double()), weight.double(), groups=33)
    size = F.conv3d(F.conv3d(x.double().abs(), before.double().abs()), weight.double().abs(), groups=33)
    assert ((got.double() - expected).abs() <= 2.0**-7 * size).all()


def test_not_without_the_instruction() -> None:
    lesser = replace(HOST, features=HOST.features - {"avx512_vnni", "avx512_bf16"})
    for target in (lesser, Target.named("avx2"), Target.named("x86-64")):
        for dtype, unsigned in (("i8", 0), ("bf16", None)):
            runner = Runner(depthwise(dtype, unsigned), 1, target)
            assert taps_of_lanes(runner, target) == 0
            runner.check(2)


def test_two_signed_factors_are_not_stacked() -> None:
    runner = Runner(depthwise("i8", None), 1)
    assert taps_of_lanes(runner) == 0
    runner.check(2)


@pytest.mark.parametrize("point", [0, 3])
@pytest.mark.parametrize(("kernel", "padding", "stride"), [(3, 1, 1), (3, 1, 2), (5, 2, 1), (3, 4, 1)])
@pytest.mark.parametrize("size", [(1, 1), (5, 23)])
def test_bytes_under_a_border(kernel: int, padding: int, stride: int, size: tuple[int, int], point: int) -> None:
    """A border of byte 0 is left out by the tiles, any other lies in memory. All scales are 1: every sum is an integer that float32
    holds.
    """
    torch._dynamo.reset()
    torch.manual_seed(7)
    weight, before = Weight(37, 1, kernel, kernel), Weight(37, 37, 1, 1)
    before.codes.copy_(torch.eye(37)[:, :, None, None])
    for layer in (weight, before):
        layer.scales.fill_(1)

    def function(x: Tensor) -> Tensor:
        y = fake(F.relu(F.conv2d(fake(x, 1.0, 40, torch.uint8), before())), 1.0, point, torch.uint8)
        return F.conv2d(y, weight(), None, stride, padding, groups=37)

    x = torch.randint(-40, 216, (2, 37, *size)).float()
    with torch.no_grad():
        got = torch.compile(function, backend="effc", options={"fallback": "error"})(x)
    assert torch.equal(got, function(x))
