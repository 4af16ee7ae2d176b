"""Finds the op for which a region cannot be built, where the refusal does not name it: by halving the region.

A later stage sees kernels, not ops; its message may say no more than what went wrong. The smallest part of the region
that is refused alone then goes to ATen, and with it every op of the same kind on the same shapes: repeated layers
repeat the failure.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import Node
from torch.utils._pytree import tree_map

from effc.compiler.capture.partition import Group, is_view


def smallest_refused(group: Group, refused: Callable[[Group], bool]) -> list[Node]:
    """The computing nodes of the smallest part of ``group`` found that ``refused`` refuses; ``group`` itself is refused.

    Takes at most ``2 log2(n)`` trials. More than one node: each half builds alone, and only together they do not.
    """
    part = [n for n in group.nodes if not is_view(n) and n.target is not operator.getitem]
    while len(part) > 1:
        half = len(part) // 2
        for candidate in (part[:half], part[half:]):
            if refused(part_of(group, candidate)):
                part = candidate
                break
        else:
            break
    return part


def part_of(group: Group, computing: Sequence[Node]) -> Group:
    """The region of some computing nodes of ``group``, with the views that they read and the items of their results."""
    chosen = set(computing)
    available = set(group.nodes)
    stack = list(computing)
    inputs: dict[Node, None] = {}
    while stack:
        node = stack.pop()
        for operand in node.all_input_nodes:
            if operand in available and operand not in chosen and is_view(operand):
                chosen.add(operand)
                stack.append(operand)
    items = {n for n in group.nodes if n.target is operator.getitem and n.args[0] in chosen}
    nodes = [n for n in group.nodes if n in chosen or n in items]
    for node in nodes:
        inputs.update(
            (operand, None) for operand in node.all_input_nodes if operand not in chosen and operand not in items
        )
    outputs = [
        n for n in nodes if not is_view(n) and isinstance(n.meta.get("val"), torch.Tensor) and n not in group.mutations
    ]
    read_outside = [
        n for n in outputs if n in group.outputs or any(u not in chosen and u not in items for u in n.users)
    ]
    mutations = {copy: target for copy, target in group.mutations.items() if copy in chosen}
    return Group(nodes, list(inputs), [*read_outside, *mutations], mutations)


def alike(node: Node) -> Any:
    """What two ops have in common that a compiler treats the same: op, shapes, strides, dtypes, and other arguments."""
    return (node.target, repr(tree_map(_described, (node.args, node.kwargs, node.meta.get("val")))))


def _described(value: Any) -> Any:
    if isinstance(value, Node):
        return tree_map(_described, value.meta.get("val"))
    if isinstance(value, torch.Tensor):
        return (value.dtype, tuple(map(str, value.shape)), tuple(map(str, value.stride())))
    return str(value)
