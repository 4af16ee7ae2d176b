"""Inputs of a program: values and memory layouts, named as the emitted source names them."""

from __future__ import annotations

import torch
from torch import Tensor

#: Layouts of an input. ``expanded`` cannot be written in place.
LAYOUTS = ("contiguous", "transposed", "strided", "offset", "channels_last", "expanded")


def tensor(
    seed: int, dtype: torch.dtype, shape: tuple[int, ...], layout: str = "contiguous", special: bool = False
) -> Tensor:
    """Random values: floats in [-2, 2], integers in [-4, 5], bools; ``special`` plants NaN, infinities and zeros.

    ``transposed``: first and last dimension swapped in memory; ``strided``: every second element of the last dimension
    of a larger tensor; ``offset``: starts 3 elements into its storage; ``channels_last``: dimension 1 innermost;
    ``expanded``: stride 0 in dimension 0. A layout that the rank does not allow is contiguous.
    """
    g = torch.Generator().manual_seed(seed)
    if layout == "transposed" and len(shape) >= 2:
        swapped = (shape[-1], *shape[1:-1], shape[0])
        return _values(g, dtype, swapped, special).transpose(0, -1)
    if layout == "strided" and shape:
        return _values(g, dtype, (*shape[:-1], 2 * shape[-1]), special)[..., ::2]
    if layout == "offset":
        count = int(torch.Size(shape).numel())
        return _values(g, dtype, (count + 3,), special)[3:].view(shape)
    if layout == "channels_last" and len(shape) >= 3:
        moved = (shape[0], *shape[2:], shape[1])
        return _values(g, dtype, moved, special).movedim(-1, 1)
    if layout == "expanded" and shape:
        return _values(g, dtype, (1, *shape[1:]), special).expand(shape)
    return _values(g, dtype, shape, special)


def _values(g: torch.Generator, dtype: torch.dtype, shape: tuple[int, ...], special: bool) -> Tensor:
    if dtype == torch.bool:
        return torch.randint(0, 2, shape, generator=g).bool()
    if not dtype.is_floating_point:
        return torch.randint(-4, 6, shape, generator=g).to(dtype)
    values = torch.rand(shape, generator=g, dtype=torch.float64) * 4 - 2
    if special:
        planted = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -0.0], dtype=torch.float64)
        which = torch.randint(0, 5, shape, generator=g)
        values = torch.where(torch.rand(shape, generator=g) < 0.15, planted[which], values)
    return values.to(dtype)
