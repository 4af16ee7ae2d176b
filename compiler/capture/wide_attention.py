"""torch's attention ops of GPUs by their formula, for operands of float64, which none of their kernels takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

_aten = torch.ops.aten


def _flash(
    q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0, causal: bool = False, debug: bool = False, *,
    scale: float | None = None,
) -> list[Tensor | None]:  # fmt: skip
    return [*_attended(q, k, v, None, causal, scale), *[None] * 7]


def _efficient(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, logsumexp: bool, dropout: float = 0.0, causal: bool = False,
    debug: bool = False, *, scale: float | None = None,
) -> list[Tensor | None]:  # fmt: skip
    return [*_attended(q, k, v, mask, causal, scale), *[None] * 2]


def _cudnn(*args: Any, **kwargs: Any) -> list[Tensor | None]:
    return [*_efficient(*args, **kwargs), *[None] * 5]


#: Op → a function with its arguments that gives result and logsumexp, and None for what only the op's own backward reads.
WIDE: Mapping[Any, Callable[..., list[Tensor | None]]] = {
    _aten._scaled_dot_product_flash_attention.default: _flash,
    _aten._scaled_dot_product_efficient_attention.default: _efficient,
    _aten._scaled_dot_product_cudnn_attention.default: _cudnn,
}


def _attended(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float | None
) -> tuple[Tensor, Tensor]:
    """Of [batch, heads, rows, channels], with one head of ``k`` and ``v`` for several of ``q``; rows that see no key are zero."""
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    scores = q @ k.mT * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    if mask is not None:
        scores = scores + mask
    if causal:
        below = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
        scores = scores.masked_fill(~below, -math.inf)
    return _aten._safe_softmax(scores, -1) @ v, scores.logsumexp(-1)
