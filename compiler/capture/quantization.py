"""The ops between integers and floats in a quantized model (``torch.ops.quantized_decomposed``), taken apart.

Each becomes the ATen ops that torch itself writes it in, so the integers are eager's bit by bit.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

_OPS = (
    *(f"{way}_per_{grain}" for way in ("quantize", "dequantize") for grain in ("tensor", "channel", "token", "channel_group")),
    "choose_qparams_per_token", "choose_qparams_per_token_asymmetric",
)  # fmt: skip
_DEFINED_BY = "torch.ao.quantization.fx._decomposed"


def quantization() -> dict[Any, Callable[..., Any]]:
    """Decompositions of the ops; none before torch's module that defines them is imported, which exporting such a model does."""
    if _DEFINED_BY not in sys.modules:
        return {}
    namespace = torch.ops.quantized_decomposed
    ops = (getattr(packet, o) for packet in (getattr(namespace, name) for name in _OPS) for o in packet.overloads())
    explicit = torch._C.DispatchKey.CompositeExplicitAutograd
    return {
        **{op: partial(op._op_dk, explicit) for op in ops},
        namespace.choose_qparams.tensor: _affine,
        namespace.choose_qparams_symmetric.tensor: _symmetric,
    }


# torch's own of these two read values while they trace (torch.ao.quantization.utils.determine_qparams).
def _affine(x: Tensor, low: int, high: int, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    least, largest = _range(x)
    scale = torch.maximum((largest - least) / float(high - low), torch.full((1,), eps, device=x.device))
    zero = low - torch.round(least / scale).to(torch.int32)
    return scale.to(torch.float64), zero.clamp(low, high).to(torch.int64)


def _symmetric(x: Tensor, low: int, high: int, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    least, largest = _range(x)
    scale = torch.maximum(-least, largest) / (float(high - low) / 2)
    scale = torch.maximum(scale, torch.full((1,), eps, device=x.device))
    zero = 128 if dtype in (torch.uint8, torch.quint8) else 0
    return scale.to(torch.float64), torch.full((1,), zero, dtype=torch.int64, device=x.device)


def _range(x: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the largest value, 0 among them."""
    least, largest = torch.aminmax(x)
    return least.clamp(max=0), largest.clamp(min=0)
