"""Rewrites of an ATen graph before it is divided: the same values, in ops that say more.

``as_strided(x, sizes, strides)`` of a contiguous ``x``, where sizes and strides are contiguous too, becomes ``view(x,
sizes)``: the decompositions of group norms write reshapes that way. What ``torch.export`` asserts of dtypes and devices, which the graph's
inputs fix, goes: it would part the graph. Attention that is written out becomes one op (``attention.py``),
parallel convolutions become one (``branches.py``), and scales of channels go into weights (``scales.py``).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.fx.experimental.symbolic_shapes import statically_known_true

from effc.compiler.capture.attention import fuse_attention
from effc.compiler.capture.branches import merge_branches
from effc.compiler.capture.scales import fold_scales

_aten = torch.ops.aten


def normalize(graph: Graph, params: Collection[Node], kept: Collection[Node] = ()) -> list[str]:
    """Rewrite ``graph`` in place; ``params``: its inputs that are parameters, ``kept``: those of them whose elements are to stay as they
    are. Sentences for the report.
    """
    for node in graph.find_nodes(op="call_function", target=_aten.as_strided.default):
        base = node.args[0]
        if isinstance(base, Node) and _is_reshape(node, base):
            node.target = _aten.view.default
            node.args, node.kwargs = (base, node.args[1]), {}
    for node in graph.find_nodes(op="call_function", target=_aten._assert_tensor_metadata.default):
        if _holds(node):
            graph.erase_node(node)
    fuse_attention(graph)
    notes = merge_branches(graph, params, kept)
    fold_scales(graph, params)
    return notes


def _holds(node: Node) -> bool:
    """Whether the metadata that is asserted is no more than dtype, device and layout, and known."""
    names = ("size", "stride", "dtype", "device", "layout")
    tensor, *given = node.args
    asserted = {n: v for n, v in {**dict(zip(names, given, strict=False)), **node.kwargs}.items() if v is not None}
    assert isinstance(tensor, Node), "the op's schema says so"
    value = tensor.meta["val"]
    return asserted.keys().isdisjoint(("size", "stride")) and all(getattr(value, n) == v for n, v in asserted.items())


def _is_reshape(node: Node, base: Node) -> bool:
    own_offset = len(node.args) < 4 and node.kwargs.get("storage_offset") is None
    x, y = base.meta["val"], node.meta["val"]
    return (
        own_offset
        and statically_known_true(x.numel() == y.numel())
        and _contiguous(x.shape, x.stride())
        and _contiguous(y.shape, y.stride())
    )


def _contiguous(sizes: Sequence[Any], strides: Sequence[Any]) -> bool:
    """Whether the strides are the products of the later sizes; a dimension of one element has any."""
    expected: Any = 1
    for size, stride in zip(reversed(sizes), reversed(strides), strict=True):
        if not statically_known_true(size == 1) and not statically_known_true(stride == expected):
            return False
        expected = expected * size
    return True
