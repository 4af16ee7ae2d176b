"""Packing of a sparse constant factor: the blocks that are not zero, and where they stand."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from effc.compiler.ir.errors import InputError


def stored_blocks(matrix: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """For each block of ``rows`` x ``columns`` elements of a matrix, the last of which may reach beyond it, whether it holds one that is
    not zero; NaN is not. Booleans ``[ceil(N/rows), ceil(K/columns)]``.
    """
    whole = F.pad(matrix != 0, (0, -matrix.shape[1] % columns, 0, -matrix.shape[0] % rows))
    blocks: torch.Tensor = whole.unflatten(1, (-1, columns)).unflatten(0, (-1, rows)).any(3).any(1)
    return blocks


def sparse_panels(
    tensor: torch.Tensor,
    *,
    offset: int,
    sizes: Sequence[int],
    strides: Sequence[int],
    block: Sequence[int],
    stored: int,
    length: int,
    shares: int,
    by: str,
    group: int,
    places: Sequence[int],
    taps: Sequence[int],
    step: int,
) -> torch.Tensor:
    """A float32 matrix [N, K] as one tensor of words, of which those of integers are read as int32. InputError: it has more than ``stored``
    blocks that are not zero.

    The matrix is a view of the memory of ``tensor`` by ``sizes`` and ``strides`` from ``offset`` on (elements), [N, positions…, C]: K runs
    through blocks of channels, then the positions of a convolution's window (where there are several, blocks divide C), then the
    channels of a block. Element K of a position and channel c is at ``taps[position] + step * c`` in what the matrix multiplies.

    ``block``: its rows and columns; a row of blocks is one of B = ceil(N / rows). ``length``: elements of the sum in one of T parts. There
    are ``shares`` runs of rows of blocks, with about as many blocks each; all but the last are multiples of ``group``. Blocks are ordered
    by parts, then rows (``by`` is ``"rows"``), or by runs, then parts, then rows (``"runs"``). At word 0: the first row of blocks of each
    run, and B. At ``places[0]``: number of the first block of each row of blocks, ``[T][B]``, or of each run, ``[shares][T]``, and of all
    blocks. At ``places[1]``: of each block where its first element of the sum is, or (``"runs"``) ``step`` times the number of its row of
    blocks in the run. At ``places[2]``: of each block its elements, ``[columns][rows]``. ``places[3]``: words in all.
    """
    rows, columns = block
    view = tensor.as_strided(tuple(sizes), tuple(strides), tensor.storage_offset() + offset)
    out, channels, window = sizes[0], sizes[-1], len(taps)
    matrix = view.reshape(out, window, -1, columns if window > 1 else 1).transpose(1, 2).reshape(out, -1)
    mask = stored_blocks(matrix, rows, columns)
    count = int(mask.sum())
    if count > stored:
        raise InputError(
            f"a sparse weight of shape {list(tensor.shape)} has {count} blocks of {rows} x {columns} elements that are not zero, and had "
            f"{stored} when the model was compiled: torch._dynamo.reset() and compile again"
        )
    each = length // columns
    parts = -(-mask.shape[1] // each)
    by_part = F.pad(mask, (0, parts * each - mask.shape[1])).unflatten(1, (parts, each)).transpose(0, 1)
    runs = _even(mask.sum(1), shares, group)
    part, row, inside = by_part.nonzero(as_tuple=True)
    counts = by_part.sum(2)
    if by == "runs":
        run = torch.searchsorted(runs[1:], row, right=True)
        order = run.argsort(stable=True)
        run, part, row, inside = run[order], part[order], row[order], inside[order]
        ends = F.pad(counts.cumsum(1), (1, 0))[:, runs]
        counts = ends.diff(dim=1).T
    at = part * each + inside
    starts = F.pad(counts.flatten().cumsum(0), (1, 0))
    # The last block of a row begins early enough to end with the sum; zeros stand for what the block before it has.
    k = matrix.shape[1]
    rest = k % columns
    lined_up = torch.cat([matrix[:, : k - rest], F.pad(matrix[:, k - rest :], (-rest % columns, 0))], 1)
    if by == "runs":
        said = (row - runs[run]) * step
    else:
        channel = (at.div(window, rounding_mode="floor") * columns).clamp(max=channels - columns)
        said = torch.tensor(taps)[at % window] + channel * step
    whole = F.pad(lined_up, (0, 0, 0, -out % rows))
    values = whole.unflatten(1, (-1, columns)).unflatten(0, (-1, rows))[row, :, at, :].transpose(1, 2)

    words = torch.zeros(places[3])
    integers = words.view(torch.int32)
    for place, numbers in ((0, runs), (places[0], starts), (places[1], said)):
        integers[place : place + len(numbers)] = numbers.to(torch.int32)
    words[places[2] : places[2] + values.numel()] = values.flatten()
    return words


def _even(blocks: torch.Tensor, shares: int, group: int) -> torch.Tensor:
    """Ends of ``shares`` runs of rows of blocks with about as many ``blocks`` each, from 0 on; a row of blocks costs one more by itself.
    All but the last are multiples of ``group``.
    """
    total = F.pad((blocks + 1).cumsum(0), (1, 0))[::group].to(torch.float64)
    wanted = (len(blocks) + int(blocks.sum())) * torch.arange(1, shares) / shares
    inner = torch.searchsorted(total, wanted.to(torch.float64)) * group
    ends = torch.tensor([0, *inner.tolist(), len(blocks)])
    return ends.clamp(max=len(blocks))
