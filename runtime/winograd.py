"""Kernels of 3x3 convolutions, transformed for Winograd's F(2x2, 3x3)."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
import torch.nn.functional as F

#: ``G`` of ``u = G g G^T`` (Lavin and Gray, "Fast algorithms for convolutional neural networks", CVPR 2016, section 4.1).
_G = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0))


def winograd_panels(
    tensor: torch.Tensor, *, offset: int, sizes: Sequence[int], strides: Sequence[int], batch: int, nr: int
) -> torch.Tensor:
    """A view to be copied, of panels of the transformed kernel, ``[B, ceil(N/nr), 16, K, nr]``, zero where a column is N or beyond.

    ``sizes`` and ``strides`` (elements) are those of ``batch`` dims of groups (their product is B), N, the summed dims (their product is
    K), and the two taps of the kernel as a view of the memory of ``tensor``, from ``offset`` elements after its first. Computed in float64
    and rounded once.
    """
    view = tensor.as_strided(tuple(sizes), tuple(strides), tensor.storage_offset() + offset)
    g = torch.tensor(_G, dtype=torch.float64)
    both = torch.kron(g, g)  # of the nine taps as one row
    columns = sizes[batch]
    transformed = (view.reshape(prod(sizes[:batch]), columns, -1, 9).double() @ both.T).to(tensor.dtype)
    panels = F.pad(transformed, (0, 0, 0, 0, 0, -columns % nr))
    cut: torch.Tensor = panels.unflatten(1, (-1, nr))
    return cut.permute(0, 1, 4, 3, 2)
