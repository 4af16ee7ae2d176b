"""Arithmetic of graph nodes, by torch's own flop counter, for the sizes seen at compile time; pointwise ops count 0."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import optimization_hint
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import flop_registry


def flops_of(nodes: Iterable[Node]) -> int:
    """The sum over ``nodes``; an op that torch has no formula for counts 0."""
    with unset_fake_temporarily():
        return sum(_flops(n) for n in nodes)


def _flops(node: Node) -> int:
    formula = flop_registry.get(getattr(node.target, "overloadpacket", None))
    if formula is None:
        return 0
    args, kwargs, result = tree_map(_concrete, (node.args, node.kwargs, node.meta.get("val")))
    return int(formula(*args, **kwargs, out_val=result))


def _concrete(value: Any) -> Any:
    """A node's value with symbolic sizes replaced by the sizes of the example."""
    if isinstance(value, Node):
        return tree_map(_concrete, value.meta.get("val"))
    if isinstance(value, torch.SymInt):
        return optimization_hint(value, fallback=1)
    if isinstance(value, torch.Tensor):
        sizes = [optimization_hint(s, fallback=1) for s in value.shape]
        return torch.empty(sizes, dtype=value.dtype, device="meta")
    return value
