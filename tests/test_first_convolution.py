"""The first convolution of a model reads the image as it lies, in planes of channels, and leaves out its border: nothing copies it."""

from __future__ import annotations

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
    torch.manual_seed(12)


class Stem(nn.Module):
    """A convolution of the input, followed by one of 1x1, so that its result lies as its kernel likes."""

    def __init__(self, *args: int, **options: int | tuple[int, int]) -> None:
        super().__init__()
        self.first = nn.Conv2d(*args, **options)  # type: ignore[arg-type]
        self.second = nn.Conv2d(args[1], 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(F.relu6(self.first(x)))
        return y


CASES: dict[str, Stem] = {
    "3x3": Stem(3, 32, 3, padding=1),
    "strided": Stem(3, 32, 3, stride=2, padding=1),
    "7x7": Stem(3, 64, 7, stride=2, padding=3),
    "odd channels": Stem(1, 19, 5, padding=2),
    "dilated": Stem(3, 16, 3, padding=2, dilation=2),
    "one side": Stem(3, 16, 3, padding=(0, 1)),
    "more than the kernel": Stem(2, 16, 3, padding=4),
    "grouped": Stem(4, 32, 3, padding=1, groups=2),
    "many channels": Stem(32, 32, 3, padding=1),
}


def kernels(module: nn.Module, x: Tensor) -> list[str]:
    with torch.no_grad():
        return [k.name for region in effc.explain(module, x).graphs[0].regions for k in region.kernels]


@pytest.mark.parametrize("size", [(2, 3), (13, 9), (30, 47)])
@pytest.mark.parametrize("case", CASES)
def test_exact(case: str, size: tuple[int, int]) -> None:
    module = CASES[case]
    if case == "one side" and size[0] < 3:
        pytest.skip("the image is smaller than the kernel")
    x = torch.randn(2, module.first.in_channels, *size)
    with torch.no_grad():
        assert_exact(module, (x,), torch.compile(module, backend="effc"))


@pytest.mark.parametrize("case", ["3x3", "strided", "7x7", "odd channels", "one side"])
def test_nothing_copies_the_image(case: str) -> None:
    module = CASES[case]
    names = kernels(module, torch.randn(1, module.first.in_channels, 31, 33))
    assert names[0].startswith("conv")
    assert not any("pad" in name for name in names)


@pytest.mark.parametrize("name", ["avx2", "x86-64"])
@pytest.mark.parametrize("case", ["strided", "7x7"])
def test_lesser_targets(case: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target = Target.named(name)
    monkeypatch.setattr(Target, "host", staticmethod(lambda: target))
    with torch.no_grad():
        assert_exact(CASES[case], (torch.randn(1, 3, 19, 23),), torch.compile(CASES[case], backend="effc"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types(dtype: torch.dtype) -> None:
    module = Stem(3, 32, 3, stride=2, padding=1).to(dtype)
    with torch.no_grad():
        assert_exact(module, (torch.randn(1, 3, 19, 23).to(dtype),), torch.compile(module, backend="effc"))


def test_images_that_lie_otherwise() -> None:
    """Channels innermost, rows apart, every second column."""
    module = CASES["strided"]
    wide = torch.randn(2, 3, 20, 48)
    for x in (wide.contiguous(memory_format=torch.channels_last), wide[:, :, 1:18, 3:40], wide[..., ::2]):
        torch._dynamo.reset()
        with torch.no_grad():
            assert_exact(module, (x,), torch.compile(module, backend="effc"))


def test_dynamic_sizes() -> None:
    module = CASES["strided"]
    compiled = torch.compile(module, backend="effc", dynamic=True)
    with torch.no_grad():
        for shape in ((2, 3, 9, 11), (3, 3, 14, 7), (1, 3, 5, 30)):
            assert_exact(module, (torch.randn(shape),), compiled)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_special_values_reach_their_neighbours_only(value: float) -> None:
    module, x = nn.Sequential(CASES["strided"].first, nn.ReLU6()), torch.randn(1, 3, 18, 29)
    x[0, 0, 0, 0] = x[0, 1, 17, 28] = x[0, 2, 9, 13] = value
    with torch.no_grad():
        ours, eager = torch.compile(module, backend="effc")(x), module(x)
    assert torch.equal(ours.isnan(), eager.isnan())
    torch.testing.assert_close(ours, eager, equal_nan=True)


def test_weights_that_change() -> None:
    """A weight that is updated is packed anew; one that is an input, or trained, is not packed at all."""
    module, x = Stem(3, 16, 3, padding=1), torch.randn(1, 3, 17, 15)
    compiled = torch.compile(module, backend="effc")
    with torch.no_grad():
        assert_exact(module, (x,), compiled)
        module.first.weight.mul_(2.0)
        assert_exact(module, (x,), compiled)

    def convolve(x: Tensor, w: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(x, w, padding=1).relu(), w.new_ones(4, 16, 1, 1))

    w = torch.randn(16, 3, 3, 3)
    assert_exact(convolve, (x, w), torch.compile(convolve, backend="effc"))
    ours, eager = torch.compile(module, backend="effc")(x), module(x)
    torch.testing.assert_close(ours, eager)


def test_several_readers_of_the_border() -> None:
    """Two convolutions read it where the image lies; where the caller sees it too, it is copied."""
    first, second = nn.Conv2d(3, 16, 3), nn.Conv2d(3, 24, 3, stride=2)

    class Two(nn.Module):
        def __init__(self, returned: bool) -> None:
            super().__init__()
            self.first, self.second, self.returned = first, second, returned

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            y = F.pad(x, (0, 1, 1, 2))
            results = self.first(y).relu(), self.second(y)
            return (*results, y) if self.returned else results

    x = torch.randn(2, 3, 14, 17)
    for returned in (False, True):
        torch._dynamo.reset()
        with torch.no_grad():
            assert_exact(Two(returned), (x,), torch.compile(Two(returned), backend="effc"))
