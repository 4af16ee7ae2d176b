"""Nodes of an ATen graph: made, dropped, and what is known of them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Graph, Node

from effc.compiler.ir.sparsity import Sparsity


@dataclass
class Known:
    """What kernels may rely on of a graph's parameters; whoever does checks it when weights are derived. ``ranges``: the least and the
    greatest element of those that hold integers; ``tables``: all elements of some small ones, codebooks; ``sparsities``: of those whose
    zeros may be left out. ``shares``: of thresholds, the share of what is compared with them that is expected not to exceed them, which
    nothing relies on.
    """

    ranges: dict[Node, tuple[int, int]] = field(default_factory=dict)
    tables: dict[Node, tuple[float, ...]] = field(default_factory=dict)
    sparsities: dict[Node, Sparsity] = field(default_factory=dict)
    shares: dict[Node, float] = field(default_factory=dict)

    def update(self, further: Known) -> None:
        self.ranges.update(further.ranges)
        self.tables.update(further.tables)
        self.sparsities.update(further.sparsities)
        self.shares.update(further.shares)


def made(graph: Graph, target: Any, args: tuple[Any, ...], like: Node | None = None) -> Node:
    """A new node with its value; ``like`` gives the place in the model."""
    node = graph.call_function(target, args)
    source = like or node.all_input_nodes[0]
    node.meta = {k: v for k, v in source.meta.items() if k in ("stack_trace", "nn_module_stack")}
    values = torch.fx.map_arg(args, lambda n: n.meta["val"])
    fake = next(v.fake_mode for n in node.all_input_nodes if isinstance(v := n.meta["val"], FakeTensor))
    with fake:
        node.meta["val"] = target(*values)
    return node


def static_nodes(graph: Graph, params: Collection[Node], some: bool = False) -> set[Node]:
    """What depends on ``params`` alone; with ``some``, on one of them, whatever else."""
    found = set(params)
    for node in graph.nodes:
        inputs = node.all_input_nodes
        depends = not found.isdisjoint(inputs) if some else inputs and found.issuperset(inputs)
        if node.op == "call_function" and depends and not _random(node):
            found.add(node)
    return found


def _random(node: Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def drop_unread(graph: Graph) -> None:
    """Erase what nobody reads; sizes stay, for code of symbolic shapes takes them from there."""
    graph.eliminate_dead_code(lambda node: node.is_impure() or isinstance(node.meta.get("val"), torch.SymInt))
