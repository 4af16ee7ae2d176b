"""Gradients of activations in pieces, as ATen's vector loops compute them (aten/src/ATen/native/cpu/Activation.cpp).

torch's decompositions follow the loops over the remainder, which take another piece where the argument is NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._decomp.decompositions import pw_cast_for_opmath

_aten = torch.ops.aten


@pw_cast_for_opmath
def _elu(grad: Tensor, alpha: float, scale: float, input_scale: float, is_result: bool, value: Tensor) -> Tensor:
    negative = alpha * scale
    slope = value + negative if is_result else negative * torch.exp(value * input_scale)
    return torch.where(value > 0, grad * scale, grad * input_scale * slope)


@pw_cast_for_opmath
def _hardswish(grad: Tensor, x: Tensor) -> Tensor:
    return torch.where(x >= 3, grad, torch.where(x <= -3, 0, grad * (x / 3 + 0.5)))


def _hardtanh(grad: Tensor, x: Tensor, low: float, high: float) -> Tensor:
    return torch.where((x > low) & (x < high), grad, 0)


GRADIENTS: dict[Any, Callable[..., Tensor]] = {
    _aten.elu_backward.default: _elu,
    _aten.hardswish_backward.default: _hardswish,
    _aten.hardtanh_backward.default: _hardtanh,
}
