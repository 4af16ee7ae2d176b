"""Decompositions that effc adds to Inductor's: ops that it lacks, or takes apart otherwise than ATen computes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._decomp import get_decompositions
from torch._decomp.decompositions import pw_cast_for_opmath
from torch._prims_common import get_computation_dtype
from torch._refs import contiguous

from effc.compiler.capture.activation_gradients import GRADIENTS
from effc.compiler.capture.sampling import grid_sampler

_aten = torch.ops.aten
#: torch has these, Inductor writes kernels of its own for them.
_TORCHS = (
    _aten.ldexp, _aten.adaptive_max_pool2d, _aten.adaptive_max_pool3d, _aten._unsafe_masked_index,
    _aten._unsafe_masked_index_put_accumulate,
)  # fmt: skip
#: Rows from which on ATen takes Euclidean distances by a matrix product, with less arithmetic (Distance.cpp).
_MATMUL_ROWS = 25
_BY_MATMUL, _DIRECTLY = 1, 2


def own_decompositions() -> dict[Any, Callable[..., Any]]:
    return {
        **get_decompositions(_TORCHS),
        **GRADIENTS,
        _aten.grid_sampler_2d.default: grid_sampler,
        _aten.grid_sampler_3d.default: grid_sampler,
        _aten._cdist_forward.default: _distances,
        _aten.gelu.default: _gelu,
        _aten.native_layer_norm.default: _layer_norm,
        _aten._native_batch_norm_legit_no_training.default: _batch_norm,
    }


@pw_cast_for_opmath
def _gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """torch's, but ``x`` is multiplied last, as its halving is exact: each op takes the one before it, so that all are one kernel."""
    if approximate == "none":
        return x * (0.5 * (1 + torch.erf(x * math.sqrt(0.5))))
    return x * (0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * (x * x * x)))))


def _layer_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The ops of torch's, whose Python takes as long again as they do, but a bias is always added, as ATen does
    (layer_norm_kernel.cpp): so no result is -0.
    """
    if bias is None:
        bias = (x if weight is None else weight).new_zeros(tuple(shape))
    x = contiguous(x)
    exact = _as(x, get_computation_dtype(x.dtype))
    var, mean = torch.var_mean(exact, list(range(x.dim() - len(shape), x.dim())), correction=0, keepdim=True)
    rstd = torch.rsqrt(var + eps)
    normalized = (exact - mean) * rstd
    scaled = normalized if weight is None else normalized * contiguous(weight)
    result = _as(scaled + contiguous(bias), x.dtype)
    kept = x.dtype if x.device.type == "cpu" else mean.dtype
    return result, _as(mean, kept), _as(rstd, kept)


def _batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, momentum: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """``x * scale + shift``, as ATen computes it (batch_norm_kernel.cpp): a multiplication and an addition an element, of channels'
    factors that depend on parameters alone.
    """
    dtype = get_computation_dtype(x.dtype)
    scale = 1 / torch.sqrt(_as(var, dtype) + eps)
    if weight is not None:
        scale = scale * _as(weight, dtype)
    shift = _as(mean, dtype) * scale
    shift = -shift if bias is None else _as(bias, dtype) - shift
    shape = (-1, *[1] * (x.dim() - 2))
    empty = x.new_zeros((0,))
    return _as(x * scale.view(shape) + shift.view(shape), x.dtype), empty, empty


def _as(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x.to(dtype)``; a call that changes nothing is traced too, and a network has hundreds."""
    return x if x.dtype == dtype else x.to(dtype)


@pw_cast_for_opmath
def _distances(x: Tensor, y: Tensor, p: float, mode: int | None) -> Any:
    """``p``-norms of the differences of rows: ``x`` [b…, n, d], ``y`` [b…, m, d] -> [b…, n, m]; NotImplemented: ATen has a better way."""
    rows = (x.shape[-2], y.shape[-2])
    if not all(isinstance(s, int) for s in (*x.shape, *y.shape)):
        return NotImplemented
    if p == 2 and mode != _DIRECTLY and (mode == _BY_MATMUL or max(rows) > _MATMUL_ROWS):
        return NotImplemented
    difference = (x.unsqueeze(-2) - y.unsqueeze(-3)).abs()
    if p == 0:
        return (difference != 0).to(x.dtype).sum(-1)
    if p == 1:
        return difference.sum(-1)
    if p == math.inf:
        return difference.amax(-1)
    if p == 2:
        return difference.square().sum(-1).sqrt()
    return difference.pow(p).sum(-1).pow(1 / p)
