"""Ops that effc compiles, and ATen runs faster on a CPU: they stay with ATen there, unless fallbacks are refused.

An entry leaves the table when its kernel wins. Each was measured in turn with eager, on one thread of an AVX-512 host.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

#: Op, without its overload → why ATen runs it.
_SLOWER = {
    # 512x1024 along the contiguous dimension: 0.35x
    "aten::cummax": "ATen's running maximum is faster",
    "aten::cummin": "ATen's running minimum is faster",
}


def faster_in_aten(node: Node) -> str | None:
    """Why ATen should run the node although effc could; None for most."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return None
    if node.target is torch.ops.aten.convolution_backward.default:
        return _strided_gradient(node.args)
    return _SLOWER.get(schema.name)


def _strided_gradient(args: Any) -> str | None:
    """Why ATen should run a convolution's backward: strided gradients with little to add for each element that they write."""
    _, x, w, _, stride, *_, groups, _ = args
    weights = w.meta["val"].shape
    if all(s == 1 for s in stride):
        return None
    if all(k == 1 for k in weights[2:]):
        # 256 → 512 channels, 1x1, batch 4 of 56x56: 0.69x; 24 → 48, batch 64 of 28x28: 0.85x
        return "ATen's gradients of a strided 1x1 convolution are faster"
    if groups == x.meta["val"].shape[1] and weights[1] == 1 and groups > 1:
        # 96 channels, 3x3, batch 8 of 56x56: 0.48x
        return "ATen's gradients of a strided depthwise convolution are faster"
    return None
