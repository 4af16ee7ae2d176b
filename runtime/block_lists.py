"""Lists of the blocks of a sparse constant matrix, as GPU kernels go through them: three tensors made of one matrix.

A matrix ``[N, K]`` of ``sizes`` lies row-major from element ``offset`` of its tensor on; ``block``: rows and columns of its blocks, the
last of which may reach beyond it. Of all rows of blocks in order, those with an element that is not zero are in the lists, at most
``stored``; where there are fewer, zeros follow, which no row counts. InputError: there are more.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from effc.compiler.ir.errors import InputError
from effc.runtime.sparse_panels import stored_blocks


def block_elements(
    source: torch.Tensor, *, sizes: Sequence[int], block: Sequence[int], stored: int, offset: int
) -> torch.Tensor:
    """The elements of each: ``[stored, columns, rows]``, zero beyond the matrix."""
    matrix, mask = _read(source, sizes, block, stored, offset)
    rows, columns = block
    whole = F.pad(matrix, (0, -sizes[1] % columns, 0, -sizes[0] % rows))
    found = whole.unflatten(1, (-1, columns)).unflatten(0, (-1, rows)).transpose(1, 2)[mask]
    return F.pad(found.transpose(1, 2), (0, 0, 0, 0, 0, stored - len(found))).contiguous()


def block_places(
    source: torch.Tensor, *, sizes: Sequence[int], block: Sequence[int], stored: int, offset: int
) -> torch.Tensor:
    """The first column of each: int32 ``[stored]``."""
    _, mask = _read(source, sizes, block, stored, offset)
    found = (mask.nonzero()[:, 1] * block[1]).int()
    return F.pad(found, (0, stored - len(found)))


def block_starts(
    source: torch.Tensor, *, sizes: Sequence[int], block: Sequence[int], stored: int, offset: int
) -> torch.Tensor:
    """Of each row of blocks the number of its first one, and of all blocks: int32 ``[ceil(N / rows) + 1]``."""
    _, mask = _read(source, sizes, block, stored, offset)
    return F.pad(mask.sum(1).cumsum(0), (1, 0)).int()


def _read(
    source: torch.Tensor, sizes: Sequence[int], block: Sequence[int], stored: int, offset: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The matrix, and which of its blocks are in the lists: bool ``[ceil(N / rows), ceil(K / columns)]``."""
    matrix = source.detach().as_strided(tuple(sizes), (sizes[1], 1), source.storage_offset() + offset)
    mask = stored_blocks(matrix, *block)
    count = int(mask.sum())
    if count > stored:
        raise InputError(
            f"a sparse weight of shape {list(source.shape)} has {count} blocks of {block[0]} x {block[1]} elements that are not zero, and "
            f"had {stored} when the model was compiled: torch._dynamo.reset() and compile again"
        )
    return matrix, mask
