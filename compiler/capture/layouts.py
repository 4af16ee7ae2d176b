"""In which order training stores the activations that it saves, and what passes between effc and ATen.

Tracing says that a convolution of contiguous images is contiguous. Its kernels like channels-last: so what a forward graph
saves for its backward gets the order in which it is computed, and AOTAutograd is told (as by Inductor). Results that the user
sees keep eager's strides.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch._guards import TracingContext
from torch._subclasses.fake_tensor import maybe_get_fake_mode
from torch.fx import GraphModule, Node
from torch.fx.experimental.symbolic_shapes import optimization_hint, statically_known_true
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves

from effc.compiler.capture.partition import is_scalar, is_view

_aten = torch.ops.aten

#: Dims of a tensor from outermost to innermost in memory.
Order = tuple[int, ...]


def arrange(gm: GraphModule, kind: str, inputs: Sequence[Any] | None, importable: Callable[[Node], bool]) -> None:
    """Set the strides (``meta["val"]``) of a training graph's values.

    ``inputs``: its examples, with the strides that they have; None: those that it was traced with.

    ``kind``: ``forward``, whose context learns the strides of the outputs, or ``backward``.
    """
    placeholders = gm.graph.find_nodes(op="placeholder")
    for node, value in zip(placeholders, inputs, strict=True) if inputs is not None else ():
        if kind == "backward" and isinstance(value, torch.Tensor) and isinstance(node.meta["val"], torch.Tensor):
            node.meta["val"] = value
    (output,) = gm.graph.find_nodes(op="output")
    results = output.args[0]
    assert isinstance(results, (list, tuple))
    context = TracingContext.try_get()
    seen = set(results)
    if kind == "forward" and context is not None and context.fw_metadata is not None:
        saved = context.fw_metadata.tensors_saved_for_backwards_slice
        seen = set(results) - {n for n in results[saved] if results.count(n) == 1}
    for node in reversed(gm.graph.nodes):  # what fixes the strides of a result that effc does not compute
        if node in seen and (is_view(node) or not _is_computed(node, importable)):
            seen.update(node.all_input_nodes)
    orders: dict[Node, Order] = {}
    for node in gm.graph.nodes:
        _arrange_node(node, orders, node in seen, importable)
    if kind == "forward" and context is not None and context.output_strides is not None:
        context.output_strides.extend(_strides(node) for node in results)


def restrided(node: Node) -> bool:
    """Whether the tensor may have other strides than tracing saw."""
    return bool(node.meta.get("restrided"))


def _is_computed(node: Node, importable: Callable[[Node], bool]) -> bool:
    return node.op == "call_function" and importable(_op(node))


def _op(node: Node) -> Node:
    """The op of which the node is a result."""
    return node.all_input_nodes[0] if node.target is operator.getitem else node


def _arrange_node(node: Node, orders: dict[Node, Order], fixed: bool, importable: Callable[[Node], bool]) -> None:
    order: Order | None = None
    if is_view(node):
        order = _viewed_order(node, orders)
        _trace_again(node)
    elif _is_computed(node, importable):
        order = _computed_order(node, _op(node), orders)
        if order is not None and not fixed and order != _order_of(node.meta["val"]):
            node.meta["val"] = _in_order(node.meta["val"], order)
            node.meta["restrided"] = True
    elif node.op == "call_function":
        _trace_again(node)
    if order is None and isinstance(node.meta.get("val"), torch.Tensor):
        order = _order_of(node.meta["val"])
    if order is not None:
        orders[node] = order


def _computed_order(node: Node, op: Node, orders: Mapping[Node, Order]) -> Order | None:
    """The order in which effc's kernels write ``node``, a result of ``op``, where it is not row-major anyway."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or value.dim() < 3:
        return None
    if op.target is _aten.convolution.default:
        return (0, *range(2, value.dim()), 1)
    if op.target is _aten.clone.default and "memory_format" in op.kwargs:
        return None
    return _inherited(value, op.all_input_nodes, orders)


def _inherited(value: torch.Tensor, operands: Sequence[Node], orders: Mapping[Node, Order]) -> Order | None:
    for operand in operands:
        given = operand.meta.get("val")
        order = orders.get(operand)
        if order is None or not isinstance(given, torch.Tensor) or given.dim() != value.dim():
            continue
        alike = all(statically_known_true(a == b) for a, b in zip(given.shape[:2], value.shape[:2], strict=True))
        if order != tuple(range(value.dim())) and alike and not _is_thin(given):
            return order
    return None


def _is_thin(value: torch.Tensor) -> bool:
    """Whether all but one or two of the dims have one element: a statistic that broadcasts."""
    return sum(optimization_hint(s, fallback=2) > 1 for s in value.shape) < 3


def _viewed_order(node: Node, orders: Mapping[Node, Order]) -> Order | None:
    """The order of a permutation of dims, from its operand's."""
    if node.target is not _aten.permute.default:
        return None
    source, dims = node.args
    assert isinstance(source, Node)
    assert isinstance(dims, (list, tuple))
    order = orders.get(source)
    if order is None:
        return None
    places = {int(d) % len(order): i for i, d in enumerate(dims)}
    return tuple(places[d] for d in order)


def _trace_again(node: Node) -> None:
    """Let ATen's own meta function say which strides its results have, now that those of its operands are known."""
    if is_scalar(node) or not any(restrided(n) for n in node.all_input_nodes):
        return
    node.meta["restrided"] = True
    target: Any = _aten.reshape.default if node.target is _aten.view.default else node.target
    if not isinstance(target, torch._ops.OpOverload) and target is not operator.getitem:
        return
    args, kwargs = cast(
        "tuple[tuple[Any, ...], dict[str, Any]]", map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    )
    mode = next(m for v in tree_leaves((args, kwargs)) if (m := maybe_get_fake_mode(v)) is not None)
    with mode:
        node.meta["val"] = target(*args, **kwargs)


def _order_of(value: torch.Tensor) -> Order | None:
    """The order of a dense tensor's dims; of dims of one element, the row-major one."""
    if value.layout != torch.strided:
        return None
    strides = [optimization_hint(s, fallback=1) for s in value.stride()]
    sizes = [optimization_hint(s, fallback=2) for s in value.shape]
    wide = sorted((d for d in range(len(sizes)) if sizes[d] != 1), key=lambda d: -strides[d])
    places = iter(wide)
    return tuple(next(places) if sizes[d] != 1 else d for d in range(len(sizes)))


def _in_order(value: torch.Tensor, order: Order) -> torch.Tensor:
    strides: list[Any] = [1] * value.dim()
    step: Any = 1
    for d in reversed(order):
        strides[d] = step
        step = step * value.shape[d]
    mode = maybe_get_fake_mode(value)
    assert mode is not None
    with mode:
        return torch.empty_strided(value.shape, strides, dtype=value.dtype, device=value.device)


def _strides(node: Any) -> tuple[Any, ...] | None:
    """The strides of a result where they differ from what tracing saw."""
    return tuple(node.meta["val"].stride()) if isinstance(node, Node) and restrided(node) else None
