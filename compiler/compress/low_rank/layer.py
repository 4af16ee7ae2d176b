"""``Layer``: a weight to factorize, and how it moves over its activation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from torch import Tensor

from effc.compiler.compress.low_rank.filters import placed
from effc.compiler.compress.low_rank.ranks import MULTIPLE, Ranks
from effc.compiler.compress.sites import WeightSite

#: A window that Winograd's method computes, where its channels fill vectors of `MULTIPLE`, and the products of an output that it takes:
#: F(2x2, 3x3) makes 4 outputs by 16.
_WINOGRAD, _BY_WINOGRAD = (3, 3), 4.0


@dataclass(frozen=True, eq=False)
class Layer:
    """``weight``: float32 ``[out, in / groups, window…]``, that of a linear layer or an embedding ``[out, in]``. ``stride`` and
    ``dilation``: of a convolution, by dimension of the window.
    """

    weight: Tensor
    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1

    @staticmethod
    def of(site: WeightSite, weight: Tensor) -> Layer:
        """By the first use of the site."""
        channels, use = site.by_channels(weight), site.uses[0]
        if use.kind != "convolution":
            return Layer(channels)
        _, _, _, stride, _, dilation, _, _, groups = use.node.args
        return Layer(channels, _sizes(stride, channels), _sizes(dilation, channels), int(str(groups)))

    @property
    def window(self) -> tuple[int, ...]:
        return tuple(self.weight.shape[2:])

    @property
    def convolution(self) -> bool:
        return self.weight.dim() > 2

    @property
    def windowed(self) -> bool:
        """Whether it is a convolution with a window of more than one position."""
        return prod(self.window) > 1

    @property
    def sides(self) -> tuple[int, int]:
        """Channels of a group: in, out."""
        return self.weight.shape[1], len(self.weight) // self.groups

    @property
    def full_rank(self) -> int:
        """Of two matrices; a window has one for each side, of which it is the greater."""
        return max(self.sides) if self.windowed else min(self.sides)

    def shapes(self, ranks: Ranks) -> list[tuple[int, ...]]:
        """Of the factors, the one that meets the activation first."""
        out, width, *window = self.weight.shape
        groups, one = self.groups, [1] * len(window)
        if ranks.kind != "tucker":
            (rank,) = ranks.sizes
            return [(groups * rank, width, *window[:1], *one[1:]), (out, rank, *one[:1], *window[1:])]
        first, second = ranks.sizes
        before = [(groups * first, width, *one)] if first < width else []
        behind = [(out, second, *one)] if groups * second < out else []
        return [*before, (groups * second, first, *window), *behind]

    def size(self, ranks: Ranks) -> int:
        """Parameters of the factors."""
        return sum(prod(shape) for shape in self.shapes(ranks))

    def products(self, ranks: Ranks | None) -> float:
        """Multiplications of the factors, or of the weight, by position of the output."""
        shapes: Sequence[Sequence[int]] = [self.weight.shape] if ranks is None else self.shapes(ranks)
        windows = [tuple(shape[2:]) for shape in shapes]
        total, positions = 0.0, prod(self.stride)
        each = zip(shapes, windows, placed(windows, self.stride, 1), placed(windows, self.dilation, 1), strict=True)
        for (out, width, *_), window, stride, dilation in each:
            positions //= prod(stride)
            winograd = window == _WINOGRAD and {*stride, *dilation} == {1} and width % MULTIPLE == 0
            total += positions * out * width * (_BY_WINOGRAD if winograd else prod(window))
        return total


def _sizes(values: object, weight: Tensor) -> tuple[int, ...]:
    """One for each dimension of the window: ATen takes one for all too."""
    assert isinstance(values, list | tuple), "of a convolution's arguments"
    dims = weight.dim() - 2
    return tuple(int(v) for v in (values * dims if len(values) == 1 else values))
