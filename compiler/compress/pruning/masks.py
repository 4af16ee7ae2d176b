"""Which elements of a weight a pattern keeps, given how much each matters.

Weights and scores are ``[out, positions, channels]`` here, as `Pattern` lies over them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from effc.compiler.ir.pattern import Pattern


def laid_out(weight: Tensor) -> Tensor:
    """``[out, channels, window…]`` as ``[out, positions, channels]``."""
    return weight.reshape(*weight.shape[:2], -1).transpose(1, 2)


def laid_back(weight: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `laid_out`; ``shape``: the weight's own."""
    return weight.transpose(1, 2).reshape(shape)


def kept(scores: Tensor, pattern: Pattern, sparsity: float, by_output: bool = False) -> Tensor:
    """True where ``scores``, floats ``[out, positions, channels]`` that the pattern divides, are largest: bool of that shape.

    Not of whole channels, which `compress.channels` removes. The score of a block, or of windows that go together, is the sum of its
    elements'. ``sparsity``: the share of False, exact to half of these in all of the weight (N:M says it itself). ``by_output``: scores are
    compared within the output channels of a block, each losing the same share, else in all of the weight. Something always stays.
    """
    assert pattern.kind != "channel", "channels are removed, not masked"
    if pattern.kind == "n:m":
        groups = scores.unflatten(-1, (-1, pattern.m))
        best = groups.topk(pattern.n, dim=-1).indices
        return torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, best, True).reshape(scores.shape)
    tiles = scores.unflatten(-1, (-1, pattern.columns)).unflatten(0, (-1, pattern.rows)).sum((1, -1))
    if pattern.kind == "kernel":
        tiles = tiles.sum(1, keepdim=True)
    pools = tiles.flatten(1) if by_output else tiles.reshape(1, -1)
    chosen = _largest(pools, sparsity).reshape(tiles.shape).expand(-1, scores.shape[1], -1)
    return chosen.repeat_interleave(pattern.rows, 0).repeat_interleave(pattern.columns, 2)


def _largest(pools: Tensor, sparsity: float) -> Tensor:
    """False for the least of each row of ``pools`` ``[pools, items]``: as many in each as bring the rows so far to ``sparsity``."""
    number, items = pools.shape
    ends = (torch.arange(number + 1, dtype=torch.float64) * items * sparsity).round().clamp(max=number * items - 1)
    counts = ends.diff()
    most = int(counts.max())
    left = torch.ones_like(pools, dtype=torch.bool)
    if most == 0:
        return left
    least = pools.topk(most, dim=1, largest=False, sorted=False)  # finds them without sorting
    left.scatter_(1, least.indices, False)
    last = least.indices.gather(1, least.values.argmax(1, keepdim=True))  # of rows that lose one less
    return left.scatter_(1, last, (counts < most)[:, None])
