"""Codes of numbers, and numbers of codes."""

from __future__ import annotations

import torch
from torch import Tensor

from effc.compiler.ir.quantization import Scheme

#: The least scale, float32's least normal number: a group of zeros, and one whose scale would be subnormal, have this one.
LEAST_SCALE = torch.finfo(torch.float32).tiny


def codes_of(scheme: Scheme, values: Tensor, scales: Tensor, zeros: Tensor | None) -> Tensor:
    """The code nearest to each of ``values``, as a float; the three broadcast, zero points are floats. Ties of integers go to even."""
    relative = values / scales
    if scheme.codebook:
        book = torch.tensor(scheme.codebook)
        return torch.bucketize(relative.contiguous(), (book[1:] + book[:-1]) / 2).float()
    low, high = scheme.limits
    codes = relative.round_()
    return (codes if zeros is None else codes.add_(zeros)).clamp_(low, high)


def values_of(scheme: Scheme, codes: Tensor, scales: Tensor, zeros: Tensor | None) -> Tensor:
    """What ``codes``, floats of `codes_of`, stand for."""
    if scheme.codebook:
        return torch.tensor(scheme.codebook)[codes.long()] * scales
    return (codes if zeros is None else codes - zeros) * scales
