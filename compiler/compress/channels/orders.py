"""An order of channels in which those that need the same things stand together, so that blocks keep more of what matters.

Xu et al., "SparseByteNN" (2023), rearrange channels so that groups of kernels line up; here they are chosen one after the other, as in
balanced clustering: each group starts with what would lose most, and takes those that lose least by what the group keeps.
"""

from __future__ import annotations

import torch
from torch import Tensor


def grouped(scores: Tensor, size: int, share: float) -> Tensor:
    """An order of the rows of ``scores``, floats of at least 0 ``[rows, items]``, such that ``size`` neighbours, aligned, that keep the
    same items, all but the ``share`` of the least sums, keep much: int64 ``[rows]``.
    """
    rows, items = scores.shape
    kept = max(round(items * (1 - share)), 1)
    best = scores.topk(kept, dim=1).values.sum(1)
    free = torch.ones(rows, dtype=torch.bool)
    found: list[int] = []
    together = torch.zeros(items, dtype=scores.dtype)
    for place in range(rows):
        if place % size == 0:
            worth, together = best, torch.zeros_like(together)
        else:
            mask = torch.zeros_like(together).index_fill_(0, together.topk(kept).indices, 1)
            worth = scores @ mask - best
        chosen = int(worth.masked_fill(~free, -torch.inf).argmax())
        free[chosen] = False
        together += scores[chosen]
        found.append(chosen)
    return torch.tensor(found)
