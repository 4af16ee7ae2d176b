"""Pieces of a graph around some of its products: enough to see which kernels are made of these, in a part of the time."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch.fx import Graph, GraphModule, Node

from effc.compiler.capture.layers import copied
from effc.compiler.capture.parameters import writes_first_argument

_aten = torch.ops.aten
_PRODUCTS = frozenset({_aten.mm.default, _aten.addmm.default, _aten.bmm.default, _aten.convolution.default})
#: Products before and behind each that are kept: what a kernel has in common with its neighbours lies within these.
_AROUND = 3
#: What writes into a part of its result.
_JOINING = _aten.cat.default


def excerpt(gm: GraphModule, nodes: Collection[Node]) -> GraphModule:
    """A copy of ``gm`` without what is more than some products away from all of ``nodes``, in the order of the program, and does not work
    for these alone: what that makes are inputs, and what it reads are outputs. Of all of it where sizes are symbolic, or tensors written.
    """
    listed = [n for n in gm.graph.nodes if n.op not in ("placeholder", "output")]
    kept = _near(listed, nodes)
    inside = set(kept)
    read = dict.fromkeys(n for node in kept for n in node.all_input_nodes if n.op != "placeholder" and n not in inside)
    if len(kept) == len(listed) or any(map(_binds, gm.graph.nodes)) or not all(map(_is_tensor, read)):
        return copied(gm)
    found = Graph()
    made: dict[Node, Node] = {n: found.node_copy(n) for n in gm.graph.find_nodes(op="placeholder", sort=True)}
    for node in read:
        made[node] = found.placeholder(f"from_{node.name}")
        made[node].meta = dict(node.meta)
    for node in kept:
        made[node] = found.node_copy(node, made.__getitem__)
    found.output(tuple(made[n] for n in kept if any(user not in inside for user in n.users)))
    return GraphModule(gm, found)


def _near(listed: Sequence[Node], nodes: Collection[Node]) -> list[Node]:
    """Of the nodes in order, those that are near to one of ``nodes``."""
    products = [i for i, n in enumerate(listed) if n.target in _PRODUCTS]
    kept: set[int] = set()
    for place in (i for i, n in enumerate(listed) if n in nodes):
        before = [i for i in products if i < place][-_AROUND - 1 :]
        behind = [i for i in products if i > place][: _AROUND + 1]
        first = before[0] + 1 if len(before) > _AROUND else 0
        last = behind[-1] if len(behind) > _AROUND else len(listed)
        kept.update(range(first, last))
    inside = {listed[i] for i in kept}
    inside |= _feeding(listed, nodes, inside)
    return [n for n in listed if n in inside]


def _feeding(listed: Sequence[Node], nodes: Collection[Node], near: Collection[Node]) -> set[Node]:
    """What makes the inputs of ``nodes``, back to products, as far as that is ``near`` or nothing else reads it: so the kernels that work
    for theirs are in the piece, wherever they stand. And what makes the parts that are joined there, for that writes them in their place.
    """
    found = set(nodes)
    for node in reversed(listed):
        readers = {u for u in node.users if u in found and (u in nodes or u.target not in _PRODUCTS)}
        joined = any(u.target is _JOINING for u in readers)
        if readers and (joined or node in near or all(u in readers or u in near for u in node.users)):
            found.add(node)
    return found


def _binds(node: Node) -> bool:
    """Whether a piece of its graph may mean something else."""
    if node.op == "get_attr" or writes_first_argument(node):
        return True
    value = node.meta.get("val")
    sizes = value.shape if isinstance(value, torch.Tensor) else [value]
    return any(isinstance(size, torch.SymInt) for size in sizes)


def _is_tensor(node: Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)
