"""Packing of a constant factor of a contraction into panels, the layout that its kernel streams through."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
import torch.nn.functional as F

#: bf16 sums two neighbours of K in one instruction (``vdpbf16ps``), so they lie together; wider types stand alone.
GROUP = {torch.bfloat16: 2}


def pack_panels(
    tensor: torch.Tensor,
    *,
    offset: int,
    sizes: Sequence[int],
    strides: Sequence[int],
    batch: int,
    reduce: int,
    nr: int,
) -> torch.Tensor:
    """Panels of a factor whose dimensions are ``batch`` batch dims, N, then ``reduce`` summed dims.

    ``sizes`` and ``strides`` (elements) of all of them describe the factor as a view of the memory of ``tensor``, which starts
    ``offset`` elements after its first. Result, contiguous, of the same dtype: ``[B, ceil(N/nr), K, nr]``, where B and K are the
    products of their dims in the order given; zero where a column is N or beyond. bf16: ``[B, ceil(N/nr), ceil(K/2), nr, 2]``,
    zero beyond K too.
    """
    view = tensor.as_strided(tuple(sizes), tuple(strides), tensor.storage_offset() + offset)
    columns, summed = sizes[batch], prod(sizes[len(sizes) - reduce :])
    view = view.reshape(prod(sizes[:batch]), columns, summed)
    group = GROUP.get(tensor.dtype, 1)
    view = F.pad(view, (0, -summed % group, 0, -columns % nr))
    panels = view.unflatten(1, (-1, nr)) if columns else view.reshape(view.shape[0], 0, nr, view.shape[2])
    if group == 1:
        return panels.transpose(2, 3).contiguous()
    return panels.unflatten(3, (-1, group)).transpose(2, 3).contiguous()
