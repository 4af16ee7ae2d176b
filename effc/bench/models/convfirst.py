"""A ConvFirst network: ConvNeXt-Tiny's stages, of blocks whose layers one kernel can take together.

Lavin, "On the Efficiency of Convolutional Neural Networks", arXiv 2404.03617 (2024), has the block, a grouped convolution before the two
pointwise ones; the widths, depths and stem here are ConvNeXt-Tiny's (Liu et al., 2022), so that both do about the same arithmetic: the
grouped 3x3 convolution is 72 multiply-adds an element where the depthwise 7x7 one is 49, beside 8 times the width of them in the others.
"""

from __future__ import annotations

from torch import Tensor, nn

from .entry import Case, Entry, Inputs, normal, settle
from .vision import conv_norm

#: Channels of a group.
GROUP = 8


class ConvFirstBlock(nn.Module):
    """Grouped 3x3 convolution, 1x1 to four times the width, SiLU, 1x1 back, each with a batch norm; and a shortcut."""

    def __init__(self, dim: int, expand: int = 4) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *conv_norm(dim, dim, 3, groups=max(1, dim // GROUP)),
            *conv_norm(dim, expand * dim, 1),
            nn.SiLU(),
            *conv_norm(expand * dim, dim, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.body(x)
        return out


class ConvFirstNet(nn.Module):
    """``depths`` blocks of ``dims`` channels a stage, between strided convolutions; image sides are multiples of 32."""

    def __init__(self, depths: tuple[int, ...], dims: tuple[int, ...], classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inp = 3
        for depth, dim in zip(depths, dims, strict=True):
            patch = 4 if inp == 3 else 2
            layers += [nn.Conv2d(inp, dim, patch, patch, bias=False), nn.BatchNorm2d(dim)]
            layers += [ConvFirstBlock(dim) for _ in range(depth)]
            inp = dim
        self.layers, self.head = nn.Sequential(*layers), nn.Linear(inp, classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.layers(x).mean((-2, -1)))
        return out


def convfirst_tiny(small: bool) -> Case:
    """The dynamic dimension is the batch."""
    net = ConvFirstNet((1, 1), (16, 24), 10) if small else ConvFirstNet((3, 3, 9, 3), (96, 192, 384, 768), 1000)
    side, batch = (32, 2) if small else (224, 1)

    def inputs(seed: int, step: int) -> Inputs:
        return (normal(seed, batch + step, 3, side, side),)

    return Case("convfirst_tiny", settle(net, (normal(0, 4, 3, side, side),)), inputs)


ENTRIES = (Entry("convfirst_tiny", convfirst_tiny),)
