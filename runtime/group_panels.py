"""Packing of an N:M constant factor: the values of its groups, and their positions in few bits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from effc.compiler.ir.errors import InputError


def group_panels(
    tensor: torch.Tensor,
    *,
    offset: int,
    sizes: Sequence[int],
    strides: Sequence[int],
    group: Sequence[int],
    lanes: int,
    vectors: int,
) -> torch.Tensor:
    """A matrix of float32 or bfloat16 of ``sizes`` [N, K], a view of the memory of ``tensor`` by ``strides`` from ``offset`` on
    (elements), of which each ``group[1]`` (M) neighbours along K hold at most ``group[0]`` that are not zero, as one tensor of its dtype,
    of words of 32 bits. InputError: a group holds more.

    Panels of ``vectors * lanes`` columns, zeros beyond the last, lie one behind the other; in each, for as many groups as have their
    positions in one word: a word of positions for each column, then words of values, one after the other of all groups; in bfloat16 two
    in a word. A position takes the bits of M - 1, one at least; the first group's first is in the lowest ones. A group with fewer values
    stores zeros of its own too.
    """
    n, m = group
    matrix = tensor.as_strided(tuple(sizes), tuple(strides), tensor.storage_offset() + offset)
    grouped = F.pad(matrix, (0, 0, 0, -sizes[0] % (vectors * lanes))).unflatten(1, (-1, m))
    most = int((grouped != 0).sum(2).max())
    if most > n:
        raise InputError(
            f"a sparse weight of shape {list(tensor.shape)} has {most} of {m} neighbours that are not zero, and had at most {n} when the "
            "model was compiled: torch._dynamo.reset() and compile again"
        )
    # Those that are not zero stand first, each kind in order.
    positions = torch.sort((grouped == 0).to(torch.int8), dim=2, stable=True).indices[:, :, :n].sort(2).values
    values = grouped.gather(2, positions)
    bits, each = max((m - 1).bit_length(), 1), 4 // matrix.element_size()
    together, count, width = 32 // (bits * n), grouped.shape[1], vectors * lanes
    shifts = torch.arange(together * n).view(together, n) * bits
    filled = F.pad(positions, (0, 0, 0, -count % together)).unflatten(1, (-1, together))
    heads = (filled << shifts).sum((2, 3)).to(torch.int32).view(matrix.dtype)  # of 32 bits the highest is a sign
    bodies = F.pad(values, (0, 0, 0, -count % together)).flatten(1).unflatten(1, (-1, together * n))
    slots = F.pad(bodies, (0, -together * n % each)).unflatten(2, (-1, each))
    runs = torch.cat([heads.view(len(heads), -1, 1, each), slots], 2)
    panels = runs.unflatten(0, (-1, width)).movedim(1, 3).flatten(1)
    rest = count % together
    unused = slots.shape[2] - -(-rest * n // each) if rest else 0
    found: torch.Tensor = panels[:, : panels.shape[1] - unused * width * each].flatten()
    return found
