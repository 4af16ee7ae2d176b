"""``ConvolutionSpectrum``: what a convolution can become, and at what error: Tucker-2, one-way filters, or a product where its window has
one position.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product

import torch
from torch import Tensor

from effc.compiler.compress.inputs import Inputs
from effc.compiler.compress.low_rank.filters import FilterChain
from effc.compiler.compress.low_rank.kernel import Kernel
from effc.compiler.compress.low_rank.layer import Layer
from effc.compiler.compress.low_rank.ranks import MULTIPLE, Curve, Point, Ranks


class ConvolutionSpectrum:
    """Of ``layer``, a convolution, all of whose groups have the same ranks. ``inputs``: those of all groups; None: of the weight alone.
    ``scales``: float64 ``[out]``, what an error of the output counts; None: squared errors count as shares of the output's squares.
    """

    def __init__(self, layer: Layer, inputs: Inputs | None, scales: Tensor | None = None) -> None:
        self.layer, self.scales = layer, scales
        weight, width = layer.weight.double(), layer.weight.shape[1]
        scaled = weight if scales is None else weight * _along_out(scales, weight)
        self.kernels = [Kernel.of(part, inputs, n * width) for n, part in enumerate(scaled.chunk(layer.groups))]

    @property
    def squares(self) -> float:
        """Of the scaled output, at one position."""
        return sum(kernel.squares for kernel in self.kernels)

    def curve(self) -> Curve:
        """Of all factors that take fewer products than the layer: what saves parameters is not to cost time."""
        whole = 1.0 if self.scales is not None else self.squares or 1.0
        layer, most = self.layer, self.layer.products(None)
        taken = [(error, ranks) for error, ranks in self._errors() if layer.products(ranks) < most]
        points = [Point(error / whole, layer.size(ranks), ranks) for error, ranks in taken]
        return Curve.of(points, layer.weight.numel())

    def factors(self, ranks: Ranks, dtype: torch.dtype) -> list[FilterChain]:
        """Of the one weight."""
        groups, shapes = self.layer.groups, self.layer.shapes(ranks)
        made = [k.tucker(*ranks.sizes) if ranks.kind == "tucker" else k.split(*ranks.sizes) for k in self.kernels]
        found = [torch.cat([of[n] for of in made]).reshape(shape) for n, shape in enumerate(shapes)]
        if self.scales is not None:
            middle = self.scales.mean()  # so that all kernels are of the weight's size
            found[-1] = found[-1] / _along_out(self.scales / middle, found[-1])
            found[-2] = found[-2] / middle
        chain = FilterChain(tuple(kernel.to(dtype) for kernel in found), groups, None)
        lost = self.layer.weight.double() - chain.dense().view_as(self.layer.weight)
        means = [k.mean_output(part) for k, part in zip(self.kernels, lost.chunk(groups), strict=True)]
        known = [mean for mean in means if mean is not None]
        return [replace(chain, shift=torch.cat(known).to(dtype)) if known else chain]

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


def _along_out(values: Tensor, weight: Tensor) -> Tensor:
    return values.view(-1, *[1] * (weight.dim() - 1))


def _ranks(full: int) -> list[int]:
    """Those that kernels like, and the full one."""
    return [*range(MULTIPLE, full, MULTIPLE), full]


def _total(errors: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(errors)).sum(0)
