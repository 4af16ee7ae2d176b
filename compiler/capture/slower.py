"""Ops that effc compiles, and ATen runs faster: they stay with ATen, unless fallbacks are refused.

An entry leaves the table when its kernel wins. Each was measured in turn with eager, on one thread of an AVX-512 host.
"""

from __future__ import annotations

from torch.fx import Node

#: Op, without its overload → why ATen runs it.
_SLOWER = {
    # 24 → 24 channels, 3x3, batch 32 of 28x28: 10 GFLOP/s in effc's weight gradient; forward and backward together 2.4x eager's time
    "aten::convolution_backward": "ATen's gradients of a convolution are faster",
    # 512x1024 along the contiguous dimension: 0.35x
    "aten::cummax": "ATen's running maximum is faster",
    "aten::cummin": "ATen's running minimum is faster",
}


def faster_in_aten(node: Node) -> str | None:
    """Why ATen should run the node although effc could; None for most."""
    schema = getattr(node.target, "_schema", None)
    return _SLOWER.get(schema.name) if schema is not None else None
