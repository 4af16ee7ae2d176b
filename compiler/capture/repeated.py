"""Ops that networks repeat, taken apart after AOTAutograd has traced them whole, those that are alike once.

AOTAutograd traces an op in a millisecond, of which a batch norm becomes ten and a network has hundreds. Here one of each shape is traced,
as AOTAutograd would have, and the nodes are copied for the others. Where gradients are off alone: for a backward graph AOTAutograd chooses
among the nodes what is kept and what is computed again. What has symbolic sizes is taken apart while it is traced.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_arg

_aten = torch.ops.aten
_REPEATED = (
    _aten._native_batch_norm_legit_no_training.default,
    _aten.gelu.default,
    _aten.native_layer_norm.default,
    _aten.silu.default,
)

#: What says where in the model a node comes from, and of which op.
_ORIGIN = ("stack_trace", "nn_module_stack", "original_aten")

#: How ops are taken apart.
Table = Mapping[Any, Callable[..., Any]]


def left_whole(table: Table) -> dict[Any, Callable[..., Any]]:
    """``table`` for a trace that `take_apart` is to follow."""
    return {**table, **{op: _where_symbolic(table[op]) for op in _REPEATED}}


def _where_symbolic(function: Callable[..., Any]) -> Callable[..., Any]:
    def decomposed(*args: Any, **kwargs: Any) -> Any:
        fixed = all(_is_fixed(a) for a in args if isinstance(a, torch.Tensor))
        return NotImplemented if fixed else function(*args, **kwargs)

    return decomposed


def take_apart(graph: Graph, table: Table) -> None:
    """Rewrite ``graph`` in place."""
    templates: dict[Hashable, Graph] = {}
    for op in _REPEATED:
        for node in graph.find_nodes(op="call_function", target=op):
            operands: list[Node] = []
            map_arg((node.args, node.kwargs), operands.append)
            if all(_is_fixed(operand.meta["val"]) for operand in operands):
                results = _results(node)
                numbers = tuple(number for number, _ in results)
                key = (op, numbers, *map(_kind, operands), repr(map_arg((node.args, node.kwargs), lambda _: "%")))
                if key not in templates:
                    templates[key] = _template(node, operands, numbers, table)
                _copy(templates[key], node, operands, [result for _, result in results])


def _is_fixed(tensor: Any) -> bool:
    """Whether sizes and strides are numbers."""
    return isinstance(tensor, torch.Tensor) and all(isinstance(n, int) for n in (*tensor.shape, *tensor.stride()))


def _kind(node: Node) -> Hashable:
    """What the trace of an op depends on."""
    value = node.meta["val"]
    return tuple(value.shape), value.stride(), value.dtype, value.device


def _results(node: Node) -> list[tuple[int, Node]]:
    """The nodes that stand for the results that are read, with their numbers; of an op with one result itself."""
    if isinstance(node.meta["val"], torch.Tensor):
        return [(0, node)]
    return [(item.args[1], item) for item in node.users if item.target is operator.getitem]  # type: ignore[misc]


def _template(node: Node, operands: Sequence[Node], results: Sequence[int], table: Table) -> Graph:
    """The graph of one such op; its placeholders are the ``operands``, its outputs the ``results`` with these numbers."""

    def function(*tensors: torch.Tensor) -> list[torch.Tensor]:
        given = iter(tensors)
        args, kwargs = map_arg((node.args, node.kwargs), lambda _: next(given))
        result = table[node.target](*args, **kwargs)
        return [result] if isinstance(result, torch.Tensor) else [result[number] for number in results]

    # Tensors are told apart by identity, and operands may be one: each gets an object of its own.
    values = [operand.meta["val"].detach() for operand in operands]
    traced: Graph = make_fx(function, decomposition_table=dict(table))(*values).graph
    traced.eliminate_dead_code()
    return traced


def _copy(template: Graph, node: Node, operands: Sequence[Node], results: Sequence[Node]) -> None:
    """Nodes of ``template`` in the place of ``node``, whose ``results`` are read."""
    graph, origin = node.graph, {k: v for k, v in node.meta.items() if k in _ORIGIN}
    made = dict(zip(template.find_nodes(op="placeholder"), operands, strict=True))
    with graph.inserting_before(node):
        for traced in template.nodes:
            if traced.op == "call_function":
                made[traced] = graph.node_copy(traced, made.__getitem__)
                made[traced].meta = {**origin, "val": traced.meta["val"]}
    found: Any = template.output_node().args[0]
    for old, new in zip(results, found, strict=True):
        old.replace_all_uses_with(made[new])
        graph.erase_node(old)
    if node not in results:
        graph.erase_node(node)
