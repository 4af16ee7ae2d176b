"""What a linear layer is to the layers around it, seen from an ATen graph: a part of a gated MLP, or a projection of attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import getitem
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node, map_arg

from effc.compiler.compress.sites import root_of

_aten = torch.ops.aten
_LINEAR: Mapping[Any, int] = {_aten.mm.default: 0, _aten.addmm.default: 1}
_RESHAPES = frozenset({_aten.view.default, _aten._unsafe_view.default, _aten.reshape.default})
_MOVES = frozenset({*_RESHAPES, _aten.permute.default, _aten.transpose.int, _aten.clone.default})
#: Operations of a gate's activation function, decomposed, are some; more are something else.
_MOST_STEPS = 16


@dataclass(frozen=True)
class GatedMlp:
    """``down(activated * up)``; ``gate``, ``up`` and ``down``: the products with their weights; ``activated``: a pointwise function of
    ``entry``, which is the gate's product reshaped: ``steps`` in order; ``product``: what ``down`` reads, before reshapes.
    """

    gate: Node
    up: Node
    down: Node
    entry: Node
    steps: tuple[Node, ...]
    product: Node

    @property
    def activated(self) -> Node:
        return self.steps[-1]

    def activation(self, values: Tensor) -> Tensor:
        """The pointwise function, of the gate's product."""
        known = {self.entry: values}
        for node in self.steps:
            args: Any = map_arg(node.args, known.__getitem__)
            kwargs: Any = map_arg(node.kwargs, known.__getitem__)
            known[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        return known[self.activated]


def gated_mlps(graph: Graph) -> list[GatedMlp]:
    """Those of ``graph``; the gate and the layer beside it have no biases, and read one activation."""
    found = (_gated(node) for node in graph.nodes if node.target in _LINEAR)
    return [mlp for mlp in found if mlp is not None]


def projections(graph: Graph) -> list[Node]:
    """Products whose result becomes an argument of attention, or whose input is attention's result, no other layer between."""
    return [n for n in graph.nodes if n.target in _LINEAR and (_comes_from_attention(n) or _reaches_attention(n))]


def _comes_from_attention(product: Node) -> bool:
    source = product.args[_LINEAR[product.target]]
    while isinstance(source, Node) and (source.target in _MOVES or source.target is getitem):
        source = source.args[0]
    return isinstance(source, Node) and _attends(source)


def _reaches_attention(product: Node) -> bool:
    pending, seen = list(product.users), set[Node]()
    while pending:
        node = pending.pop()
        if node in seen or node.target in _LINEAR:
            continue
        if _attends(node):
            return True
        seen.add(node)
        pending += node.users
    return False


def _attends(node: Node) -> bool:
    return "scaled_dot_product" in str(node.target) or node.target is _aten.bmm.default


def _gated(down: Node) -> GatedMlp | None:
    source = down.args[_LINEAR[down.target]]
    assert isinstance(source, Node), "a product of two tensors"
    product = root_of(source, source.meta["val"].shape[-1])
    if product.target is not _aten.mul.Tensor or not all(isinstance(a, Node) for a in product.args):
        return None
    left, right = product.args
    for activated, other in ((left, right), (right, left)):
        assert isinstance(activated, Node), "seen above"
        assert isinstance(other, Node), "seen above"
        if (
            activated.meta["val"].shape != product.meta["val"].shape
            or other.meta["val"].shape != activated.meta["val"].shape
        ):
            continue
        up, found = _product(other), _function(activated)
        if up is None or found is None:
            continue
        entry, steps = found
        gate = _product(entry)
        if gate is not None and _input(gate) is _input(up) and gate is not up:
            return GatedMlp(gate, up, down, entry, steps, product)
    return None


def _product(node: Node) -> Node | None:
    """The product of which ``node`` is a reshape, if it is one without a bias."""
    while node.target in _RESHAPES:
        source = node.args[0]
        assert isinstance(source, Node), "reshapes are of tensors"
        node = source
    return node if node.target is _aten.mm.default else None


def _input(product: Node) -> Node:
    source = product.args[0]
    assert isinstance(source, Node), "a product of two tensors"
    return root_of(source, source.meta["val"].shape[-1])


def _function(activated: Node) -> tuple[Node, tuple[Node, ...]] | None:
    """What ``activated`` is a pointwise function of, and that function's operations in order; None where that is no linear layer."""
    steps, entries, pending = set[Node](), set[Node](), [activated]
    while pending and len(steps) <= _MOST_STEPS:
        node = pending.pop()
        if _product(node) is not None:
            entries.add(node)
        elif _pointwise(node):
            steps.add(node)
            pending += [n for n in node.all_input_nodes if n not in steps]
        else:
            return None
    return (entries.pop(), tuple(sorted(steps))) if steps and not pending and len(entries) == 1 else None


def _pointwise(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and torch.Tag.pointwise in node.target.tags


def by_product(mlps: Sequence[GatedMlp]) -> Mapping[Node, GatedMlp]:
    """The MLP of each of the products."""
    return {product: mlp for mlp in mlps for product in (mlp.gate, mlp.up, mlp.down)}
