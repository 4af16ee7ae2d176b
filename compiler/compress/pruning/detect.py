"""The pattern that the zeros of a weight make, whoever made them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from effc.compiler.compress.pruning.masks import laid_out
from effc.compiler.ir.pattern import Pattern

#: The blocks looked for: those of one output channel suit products with a vector, those of several the tiles of a product of matrices.
BLOCKS = tuple(
    Pattern.block(rows, columns)
    for rows, columns in ((1, 4), (1, 8), (1, 16), (1, 32), (4, 1), (8, 1), (16, 1), (32, 1), (4, 4), (8, 8), (16, 16))
)
#: The groups of N:M looked for.
GROUPS = (4, 8, 16)
_VALUE_BITS = _INDEX_BITS = 32  # of float32 and of the places of elements and blocks, as CSR and BSR hold them


@dataclass(frozen=True)
class Fit:
    """``pattern`` holds a weight exactly if it stores ``stored`` of its elements: all that are not 0, and the zeros that come with them."""

    pattern: Pattern
    stored: float

    @property
    def bits(self) -> float:
        """Of float32 values and their places, for each element of the weight; 32 of a dense one."""
        pattern = self.pattern
        if pattern.kind == "channel":
            place = 0.0
        elif pattern.kind == "n:m":
            place = (pattern.m - 1).bit_length()
        else:
            place = _INDEX_BITS / (pattern.rows * pattern.columns)
        return self.stored * (_VALUE_BITS + place)


def fits(weight: Tensor) -> list[Fit]:
    """The patterns by which ``weight`` ``[out, channels, window…]`` needs not store all of itself, from the least `Fit.bits`.

    Of N:M the least N for each M of `GROUPS`, of blocks those of `BLOCKS` that divide it. Empty where no element is 0.
    """
    nonzero = laid_out(weight.detach() != 0)
    if bool(nonzero.all()):
        return []
    found = [fit for fit in _candidates(nonzero, weight.shape) if fit.stored < 1]
    return sorted(found, key=lambda fit: fit.bits)


def best_fit(weight: Tensor) -> Fit | None:
    """The first of `fits`, if it is smaller than the dense weight."""
    return next((fit for fit in fits(weight)[:1] if fit.bits < _VALUE_BITS), None)


def _candidates(nonzero: Tensor, shape: torch.Size) -> Iterator[Fit]:
    yield Fit(Pattern.channel(), _share(nonzero.any(2).any(1)))
    for m in GROUPS:
        if nonzero.shape[2] % m == 0:
            n = max(int(nonzero.unflatten(2, (-1, m)).sum(-1).max()), 1)
            yield Fit(Pattern.of_each(n, m), n / m)
    for block in BLOCKS:
        if not block.misfit("", shape):
            tiles = nonzero.unflatten(2, (-1, block.columns)).unflatten(0, (-1, block.rows))
            yield Fit(block, _share(tiles.any(-1).any(1)))
    yield Fit(Pattern.unstructured(), _share(nonzero))


def _share(kept: Tensor) -> float:
    return int(kept.sum()) / kept.numel()
