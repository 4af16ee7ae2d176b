"""Whole windows of convolutions, sampled while a model runs in eager: what positions of the output are sums over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

#: Functions that sum over a window, of arguments (input, weight, bias, stride, padding, dilation, groups).
CONVOLUTIONS = frozenset({torch.conv1d, torch.conv2d, torch.conv3d})
_NAMES = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


@dataclass(frozen=True)
class Convolution:
    """How a window of sizes ``window`` moves, by dimension; ``padding``: before the first element."""

    window: Sequence[int]
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    outputs: Sequence[int]

    @staticmethod
    def of(x: Tensor, weight: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Convolution:
        """Of a call of `CONVOLUTIONS` with these arguments, whose activation is ``x``."""
        given = dict(zip(_NAMES, args, strict=False)) | dict(kwargs)
        window = tuple(weight.shape[2:])
        stride, dilation = (_each(given.get(name, 1), len(window)) for name in ("stride", "dilation"))
        reach = [d * (k - 1) for d, k in zip(dilation, window, strict=True)]
        padding = given.get("padding", 0)
        if isinstance(padding, str):
            both = reach if padding == "same" else [0] * len(window)
            before: Sequence[int] = [r // 2 for r in both]
        else:
            before = _each(padding, len(window))
            both = [2 * p for p in before]
        sizes = x.shape[-len(window) :]
        outputs = [(n + p - r - 1) // s + 1 for n, p, r, s in zip(sizes, both, reach, stride, strict=True)]
        return Convolution(window, stride, before, dilation, outputs)


def sampled(convolution: Convolution, x: Tensor, limit: int) -> Tensor:
    """Of the activation ``x`` ``[batch, channels, image…]`` (or without a batch) at most ``limit`` windows, evenly spread over the output:
    float32 ``[rows, channels, window…]``, zeros where they reach over the border.
    """
    image = len(convolution.window)
    batched = x.detach() if x.dim() == image + 2 else x.detach()[None]
    places = (len(batched), *convolution.outputs)
    total = int(torch.tensor(places).prod())
    chosen = torch.linspace(0, total - 1, min(total, limit), dtype=torch.float64).long()
    batch, *at = torch.unravel_index(chosen, places)
    indices = [batch.view(-1, *[1] * image)]
    inside = torch.ones(len(chosen), *[1] * image, dtype=torch.bool)
    for d, output in enumerate(at):
        start = output * convolution.stride[d] - convolution.padding[d]
        places_of = start[:, None] + convolution.dilation[d] * torch.arange(convolution.window[d])
        spread_out = places_of.view(len(chosen), *(-1 if n == d else 1 for n in range(image)))
        size = batched.shape[2 + d]
        inside = inside & (spread_out >= 0) & (spread_out < size)
        indices.append(spread_out.clamp(0, size - 1))
    taken = batched.movedim(1, -1)[tuple(indices)].float()
    return torch.where(inside[..., None], taken, 0.0).movedim(-1, 1).contiguous()


def spread(rows: Tensor, limit: int) -> Tensor:
    """At most ``limit`` of ``rows``, evenly spread: a copy."""
    return rows[torch.linspace(0, len(rows) - 1, min(len(rows), limit)).long()].clone()


def _each(value: Any, dims: int) -> Sequence[int]:
    """One for each dimension: torch takes one for all too."""
    values = (value,) if isinstance(value, int) else tuple(int(v) for v in value)
    return values * dims if len(values) == 1 else values
