"""Packing of a constant factor of a contraction into panels, the layout that its kernel streams through."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F

from effc.compiler.ir.errors import InputError


def pack_panels(
    tensor: torch.Tensor,
    *,
    offset: int,
    sizes: Sequence[int],
    strides: Sequence[int],
    batch: int,
    inner: int,
    nr: int,
    group: int,
    filled: int,
) -> torch.Tensor:
    """Panels of a factor whose dimensions are ``batch`` batch dims, N, then the summed ones.

    ``sizes`` and ``strides`` (elements) of all of them describe the factor as a view of the memory of ``tensor``, which starts
    ``offset`` elements after its first. Result, of the same dtype, a view to be copied: ``[B, ceil(N/nr), K, nr]``, where B and K are the
    products of their dims in the order given; zero where a column is N or beyond. With ``group`` 2, two neighbours of K lie together,
    as an instruction sums them: ``[B, ceil(N/nr), K/2, nr, 2]``, where the product of the last ``inner`` summed dims is first
    filled with zeros to a multiple of ``filled``, itself one of ``group``.
    """
    view = tensor.as_strided(tuple(sizes), tuple(strides), tensor.storage_offset() + offset)
    columns, last = sizes[batch], len(sizes) - inner
    view = view.reshape(prod(sizes[:batch]), columns, prod(sizes[batch + 1 : last]), prod(sizes[last:]))
    view = _filled(view, (0, -prod(sizes[last:]) % filled)).flatten(2)
    view = _filled(view, (0, 0, 0, -columns % nr))
    count, rows, steps = view.shape[0], view.shape[1], view.shape[2] // group
    panels = view.reshape(count, rows // nr, nr, steps, group).transpose(2, 3)
    return panels if group > 1 else panels.squeeze(4)


def _filled(view: torch.Tensor, added: tuple[int, ...]) -> torch.Tensor:
    """``view`` with zeros behind its last dimensions, as for ``F.pad``, which would copy it even where ``added`` are none."""
    return F.pad(view, added) if any(added) else view


def pack_codes(tensor: torch.Tensor, *, bits: int, limits: Sequence[int], **view: Any) -> torch.Tensor:
    """Panels of low-bit codes, of which ``tensor`` holds each one in a byte. InputError: one lies outside ``limits``, the least and the
    greatest.

    ``view``: as for `pack_panels`, ``group`` being the codes that fill a word of 32 bits: the even ones its lower half, the odd ones its
    upper half, each from the lowest bits on (`formats.Format.place`). Result, of bytes: ``[B, ceil(N/nr), K/group, nr, 4]``.
    """
    if tensor.numel() and not limits[0] <= int(tensor.min()) <= int(tensor.max()) <= limits[1]:
        raise InputError(
            f"a quantized weight of shape {list(tensor.shape)} holds codes from {int(tensor.min())} to {int(tensor.max())}, and the model "
            f"was compiled when they lay between {limits[0]} and {limits[1]}: torch._dynamo.reset() and compile again"
        )
    group: int = view["group"]
    codes = pack_panels(tensor.view(torch.uint8), **view) & ((1 << bits) - 1)
    codes = codes.unflatten(4, (group // 2, 2)).transpose(4, 5).unflatten(5, (2, group // 4))
    shifts = torch.arange(0, 8, 32 // group, dtype=torch.uint8)
    packed: torch.Tensor = (codes << shifts).sum(6, dtype=torch.uint8).flatten(4)
    return packed


def not_finite(tensor: torch.Tensor, *, offset: int, sizes: Sequence[int], strides: Sequence[int]) -> torch.Tensor:
    """Whether a view of the memory of ``tensor`` by ``sizes`` and ``strides`` from ``offset`` on (elements) holds NaN or infinity: float32
    ``[1]``, 1 or 0.
    """
    view = tensor.as_strided(tuple(sizes), tuple(strides), tensor.storage_offset() + offset)
    return (~view.isfinite()).any().reshape(1).to(torch.float32)
