"""Scales of a convolution's output channels, folded into its weights: ``convolution(x, w, b) * s`` as ``convolution(x, w * s, b * s)``.

So a batch norm at inference (Ioffe and Szegedy 2015, section 3.1) costs an addition an element. Only where ``w``, ``b`` and ``s`` depend on
parameters alone, so that the products are made when these change (`pipeline/prepare.py`), and in float32 and float64: weights of 16 bits,
rounded once more, would be off by as much again as they are.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch.fx import Graph, Node

from effc.compiler.capture.nodes import drop_unread, made, static_nodes

_aten = torch.ops.aten
_CONVOLUTION = _aten.convolution.default
#: In which products and sums of weights are as good as the weights.
FOLDED_DTYPES = (torch.float32, torch.float64)


def fold_scales(graph: Graph, params: Collection[Node]) -> None:
    """Rewrite ``graph`` in place; ``params``: inputs whose values stay from call to call."""
    static = static_nodes(graph, params)
    for product in graph.find_nodes(op="call_function", target=_aten.mul.Tensor):
        for conv, scale in (product.args, product.args[::-1]):
            if is_plain_convolution(conv) and _folds(conv, scale, product, static):
                _fold(graph, conv, scale, product)
                break
    drop_unread(graph)


def is_plain_convolution(node: Any) -> bool:
    """Whether it is a convolution, not transposed, of known channels."""
    return isinstance(node, Node) and node.target is _CONVOLUTION and not node.args[6]


def _folds(conv: Node, scale: Any, product: Node, static: Collection[Node]) -> bool:
    """Whether nobody else reads the unscaled result, and ``scale`` holds one factor of its dtype for each of its channels."""
    fixed: Sequence[Any] = (scale, *conv.args[1:3])
    if set(conv.users) != {product} or any(node is not None and node not in static for node in fixed):
        return False
    result = conv.meta["val"]
    if result.dtype not in FOLDED_DTYPES or any(n is not None and n.meta["val"].dtype != result.dtype for n in fixed):
        return False
    return scales_channels(scale, conv)


def scales_channels(factor: Node, result: Node) -> bool:
    """Whether ``factor`` has one element for each channel of ``result`` [n, channels, …]."""
    of, shape = factor.meta["val"], result.meta["val"].shape
    ones = (1,) * (len(shape) - 2)
    channels = shape[1]
    known = isinstance(of, torch.Tensor) and isinstance(channels, int)
    return known and tuple(of.shape) in ((channels, *ones), (1, channels, *ones))


def _fold(graph: Graph, conv: Node, scale: Node, product: Node) -> None:
    weights, bias = conv.args[1:3]
    assert isinstance(weights, Node)
    with graph.inserting_before(product):
        channels = weights.meta["val"].shape[0]
        flat = made(graph, _aten.view.default, (scale, [channels]), product)
        column = made(graph, _aten.view.default, (scale, [channels, *[1] * (weights.meta["val"].dim() - 1)]), product)
        scaled = made(graph, _aten.mul.Tensor, (weights, column), product)
        moved = None if bias is None else made(graph, _aten.mul.Tensor, (bias, flat), product)
        found = made(graph, _CONVOLUTION, (conv.args[0], scaled, moved, *conv.args[3:]), conv)
    product.replace_all_uses_with(found)
