"""``ConvolutionSpectrum``: what a convolution can become, and at what error: Tucker-2, one-way filters, or a product where its window has
one position.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import torch
from torch import Tensor

from effc.compiler.compress.inputs import Inputs
from effc.compiler.compress.low_rank.filters import FilterChain
from effc.compiler.compress.low_rank.kernel import Kernel
from effc.compiler.compress.low_rank.layer import Layer
from effc.compiler.compress.low_rank.ranks import MULTIPLE, Curve, Point, Ranks


class ConvolutionSpectrum:
    """Of ``layer``, a convolution, all of whose groups have the same ranks. ``inputs``: those of all groups; None: of the weight alone."""

    def __init__(self, layer: Layer, inputs: Inputs | None) -> None:
        self.layer = layer
        parts, width = layer.weight.chunk(layer.groups), layer.weight.shape[1]
        self.kernels = [Kernel.of(part, inputs, n * width) for n, part in enumerate(parts)]

    def curve(self) -> Curve:
        """Of all factors that take fewer products than the layer: what saves parameters is not to cost time. Errors are shares of the
        output's squares.
        """
        squares = sum(kernel.squares for kernel in self.kernels) or 1.0
        layer, most = self.layer, self.layer.products(None)
        taken = [(error, ranks) for error, ranks in self._errors() if layer.products(ranks) < most]
        points = [Point(error / squares, layer.size(ranks), ranks) for error, ranks in taken]
        return Curve.of(points, layer.weight.numel())

    def factors(self, ranks: Ranks, dtype: torch.dtype) -> list[FilterChain]:
        """Of the one weight."""
        made = [k.tucker(*ranks.sizes) if ranks.kind == "tucker" else k.split(*ranks.sizes) for k in self.kernels]
        shapes = self.layer.shapes(ranks)
        kernels = tuple(torch.cat([of[n] for of in made]).reshape(s).to(dtype) for n, s in enumerate(shapes))
        chain = FilterChain(kernels, self.layer.groups, None)
        lost = self.layer.weight - chain.dense().view_as(self.layer.weight)
        means = [k.mean_output(p.double()) for k, p in zip(self.kernels, lost.chunk(self.layer.groups), strict=True)]
        known = [mean for mean in means if mean is not None]
        return [FilterChain(kernels, self.layer.groups, torch.cat(known).to(dtype)) if known else chain]

    def _errors(self) -> Iterator[tuple[float, Ranks]]:
        """Squared errors by ranks."""
        (width, out), window = self.layer.sides, self.layer.window
        if self.layer.windowed:
            tucker = _total([kernel.tucker_errors() for kernel in self.kernels])
            for first, second in product(_ranks(width), _ranks(out)):
                if (first, second) != (width, out):
                    yield float(tucker[first, second]), Ranks("tucker", (first, second))
        if not self.layer.windowed or (len(window) == 2 and min(window) > 1):
            split = _total([kernel.split_errors() for kernel in self.kernels])
            for rank in _ranks(len(split) - 1)[:-1]:
                yield float(split[rank]), Ranks("separable" if self.layer.windowed else "product", (rank,))


def _ranks(full: int) -> list[int]:
    """Those that kernels like, and the full one."""
    return [*range(MULTIPLE, full, MULTIPLE), full]


def _total(errors: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(errors)).sum(0)
