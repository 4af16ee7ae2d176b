"""Codes of up to four bits, two a byte, in the order in which they lie: the form in which GPU kernels read them."""

from __future__ import annotations

import torch


def pack_nibbles(source: torch.Tensor, offset: int, size: int) -> torch.Tensor:
    """``size`` codes of ``source``, int8, from element ``offset`` of its memory on: code i is the lower half of byte i // 2 where i is
    even, else the upper half. An odd one out is followed by zero.
    """
    flat = source.detach().as_strided((size,), (1,), source.storage_offset() + offset).view(torch.uint8)
    if size % 2:
        flat = torch.cat([flat, flat.new_zeros(1)])
    low, high = flat[::2] & 15, flat[1::2] & 15
    return (low | high << 4).view(torch.int8)
