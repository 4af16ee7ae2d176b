"""Divides an ATen graph into regions to compile and ops for ATen.

Execution alternates between slots of ATen ops and compiled regions::

    slot -1, region 0, slot 0, region 1, slot 1, …

Every op goes to the first place that its operands allow: an importable op into the region of its latest operand, or
into the one after the slot of an ATen operand; an ATen op into the slot after the region of its latest operand. So
the number of regions is the largest number of changes between the two kinds along any path: no division has fewer.
Ops on several devices that go to one place are as many regions, one a device: no value flows between them, for an op that
reads or makes tensors on two devices is ATen's.
What depends on graph inputs alone then moves to just before its first use, so that it does not live longer than in
eager.

Views cost nothing, so they belong to no one: each region that reads one holds its own copy of the chain of views down
to a computed tensor or an input, and a view that ATen or the caller reads is made by ATen (``assemble.py``): the
aliasing of results stays what it is in eager.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch.fx import Graph, Node

_aten = torch.ops.aten

#: Ops that only move data: a region of nothing else is ATen's, which does it as well.
_COPIES = frozenset(
    {
        _aten.clone.default,
        _aten.copy.default,
        _aten.copy_.default,
        _aten.full.default,
        _aten.empty.memory_format,
        _aten.lift_fresh_copy.default,
        _aten._to_copy.default,
    }
)


#: A region's number, whether it is on a CPU, and its device: in this order, so that kernels on a GPU are launched, for which nobody waits,
#: before a CPU computes what does not need them.
_Place = tuple[int, bool, str]


@dataclass
class Group:
    """One region: ``nodes`` in graph order (views that it reads included), what it reads, and what others read of it.

    ``mutations`` are its ``aten.copy_`` nodes with the graph input that each overwrites, after every read of the old
    value.
    """

    nodes: list[Node]
    inputs: list[Node]
    outputs: list[Node]
    mutations: dict[Node, Node]

    @property
    def device(self) -> torch.device | None:
        """On which all of it is; None: it makes no tensor."""
        return next((d for n in self.nodes if (d := device_of(n)) is not None), None)


@dataclass
class Partition:
    """``order`` runs from first to last: groups, and single nodes for ATen or Python (views excepted)."""

    order: list[Group | Node]

    @property
    def groups(self) -> list[Group]:
        return [step for step in self.order if isinstance(step, Group)]


def is_view(node: Node) -> bool:
    """Whether the node's result shares the storage of its first operand."""
    if node.op != "call_function":
        return False
    if node.target is operator.getitem:
        return isinstance(node.args[0], Node) and is_view(node.args[0])
    return bool(getattr(node.target, "is_view", False)) or node.target is _aten._unsafe_view.default


def base_of(node: Node) -> Node:
    """The tensor under a chain of views."""
    while is_view(node):
        node = node.all_input_nodes[0]
    return node


def is_scalar(node: Node) -> bool:
    """Whether the node's value is a number, symbolic or not: Python computes it."""
    return isinstance(node.meta.get("val"), torch.SymInt | torch.SymFloat | torch.SymBool | int | float | bool)


def device_of(node: Node) -> torch.device | None:
    """Where the tensors are that the node makes; None: it makes none."""
    value = node.meta.get("val")
    tensors = (v for v in (value if isinstance(value, tuple | list) else (value,)) if isinstance(v, torch.Tensor))
    return next((v.device for v in tensors), None)


def partition(graph: Graph, importable: Callable[[Node], bool]) -> Partition:
    """Divide ``graph``; ``importable`` says of a tensor op whether a region may hold it."""
    state = _Places(graph, importable)
    while True:
        state.place()
        idle = state.idle_regions()
        if not idle:
            return state.result()
        state.compiled -= idle


class _Places:
    """Where each node goes: ``region[n]`` for nodes of ``compiled``, ``slot[n]`` for the other calls."""

    def __init__(self, graph: Graph, importable: Callable[[Node], bool]) -> None:
        self.graph = graph
        self.calls = [n for n in graph.nodes if n.op not in ("placeholder", "get_attr", "output")]
        self.position = {n: i for i, n in enumerate(graph.nodes)}
        self.compiled: set[Node] = set()
        for n in self.calls:
            if n.target is operator.getitem and isinstance(n.args[0], Node):
                if n.args[0] in self.compiled:
                    self.compiled.add(n)
            elif not is_scalar(n) and importable(n) and (n.target is not _aten.copy_.default or _overwrites_input(n)):
                self.compiled.add(n)
        self.free_views = {n for n in self.calls if is_view(n) and n in self.compiled}
        self.before = self._order_of_effects()
        self.region: dict[Node, int] = {}
        self.slot: dict[Node, int] = {}

    def _order_of_effects(self) -> dict[Node, list[Node]]:
        """Nodes that must run first although no value flows: readers before a mutation, effects in their order."""
        before: dict[Node, list[Node]] = {}
        previous: Node | None = None
        for n in self.calls:
            if _is_effect(n):
                before.setdefault(n, []).extend([] if previous is None else [previous])
                previous = n
            if n.target is _aten.copy_.default and isinstance(n.args[0], Node):
                readers = [r for r in _readers(base_of(n.args[0])) if self.position[r] < self.position[n]]
                before.setdefault(n, []).extend(readers)
        return before

    # -- placing ----------------------------------------------------------------------------------------------------
    def place(self) -> None:
        self.region.clear()
        self.slot.clear()
        for n in self.calls:
            operands = [*n.all_input_nodes, *self.before.get(n, ())]
            if n in self.compiled:
                self.region[n] = max((self._first_region(p) for p in operands), default=0)
            else:
                self.slot[n] = max((self._first_slot(p) for p in operands), default=-1)
        self._sink()

    def _first_region(self, operand: Node) -> int:
        return self.region[operand] if operand in self.region else self.slot.get(operand, -1) + 1

    def _first_slot(self, operand: Node) -> int:
        return self.region[operand] if operand in self.region else self.slot.get(operand, -1)

    def _sink(self) -> None:
        """Move what depends on graph inputs alone to its first use; the regions keep their number. The results of an op that has
        several stay with it.
        """
        always_alive: set[Node] = set()
        for n in self.calls:
            if (
                not _is_effect(n)
                and n not in self.before
                and all(p.op in ("placeholder", "get_attr") or p in always_alive for p in n.all_input_nodes)
            ):
                always_alive.add(n)
        held_back = {p for operands in self.before.values() for p in operands}
        for n in reversed(self.calls):
            users = [u for u in n.users if u.op != "output"]
            if n not in always_alive or n in held_back or len(users) < len(n.users) or not users:
                continue
            if n.target is operator.getitem and not is_view(n):
                continue
            if n in self.compiled:
                self.region[n] = min(self.region[u] if u in self.region else self.slot[u] for u in users)
            else:
                self.slot[n] = min(self.region[u] - 1 if u in self.region else self.slot[u] for u in users)

    def idle_regions(self) -> set[Node]:
        """Nodes of regions that compute nothing."""
        busy = {self._place(n) for n in self.region if n not in self.free_views and n.target not in _COPIES}
        return {n for n in self.region if self._place(n) not in busy}

    def _place(self, node: Node) -> _Place:
        device = device_of(node)
        return self.region[node], device is None or device.type == "cpu", str(device)

    # -- the result -------------------------------------------------------------------------------------------------
    def result(self) -> Partition:
        members: dict[_Place, list[Node]] = {}
        for n in self.calls:
            if n in self.region and n not in self.free_views:
                members.setdefault(self._place(n), []).append(n)
        slots: dict[int, list[Node]] = {}
        for n in self.calls:
            if n in self.slot:
                slots.setdefault(self.slot[n], []).append(n)
        groups = {place: self._group(nodes) for place, nodes in sorted(members.items())}
        self._outputs(groups)
        order: list[Group | Node] = []
        for number in range(-1, max([-1, *(n for n, *_ in groups), *slots]) + 1):
            order.extend(group for (region, *_), group in groups.items() if region == number)
            order.extend(slots.get(number, ()))
        return Partition(order)

    def _group(self, computed: list[Node]) -> Group:
        """The region of the computed nodes: takes in the views that they read, finds inputs and mutations."""
        nodes = set(computed)
        inputs: dict[Node, None] = {}
        stack = list(computed)
        while stack:
            for operand in stack.pop().all_input_nodes:
                if operand in nodes:
                    continue
                if operand in self.free_views:
                    nodes.add(operand)
                    stack.append(operand)
                else:
                    inputs.setdefault(operand)
        mutations = {n: n.args[0] for n in computed if n.target is _aten.copy_.default and isinstance(n.args[0], Node)}
        in_order = self.position.__getitem__
        return Group(sorted(nodes, key=in_order), sorted(inputs, key=in_order), [], mutations)

    def _outputs(self, groups: dict[_Place, Group]) -> None:
        """What others read of each region: the computed tensor, or its only view where that shows all of it."""
        wanted: dict[Node, dict[Node, None]] = {}
        for reader in self.graph.nodes:
            if reader.op == "output" or reader in self.slot:
                for operand in reader.all_input_nodes:
                    base = _computed_base(operand, self.free_views)
                    if base in self.region:
                        wanted.setdefault(base, {}).setdefault(operand)
        for group in groups.values():
            for operand in group.inputs:
                if operand in self.region:
                    wanted.setdefault(operand, {}).setdefault(operand)
        for base, views in wanted.items():
            group = groups[self._place(base)]
            only = next(iter(views))
            if len(views) == 1 and only is not base and _whole(only, base):
                group.outputs.append(only)
                group.nodes.extend(n for n in _chain(only, base) if n not in group.nodes)
                group.nodes.sort(key=self.position.__getitem__)
            else:
                group.outputs.append(base)
        for group in groups.values():
            group.outputs.sort(key=self.position.__getitem__)
            group.outputs.extend(group.mutations)


# -- questions about nodes ------------------------------------------------------------------------------------------
def _is_effect(node: Node) -> bool:
    """Whether the node does more than compute its value: random state, writes, assertions, printing."""
    schema = getattr(node.target, "_schema", None)
    if schema is not None and torch.Tag.nondeterministic_seeded in node.target.tags:  # type: ignore[union-attr]
        return True
    return node.target is not _aten.copy_.default and node.is_impure()


def _readers(node: Node) -> Iterator[Node]:
    """Users of a tensor, also through views of it."""
    for user in node.users:
        if user.op != "output":
            yield user
            if is_view(user):
                yield from _readers(user)


def _computed_base(node: Node, free_views: set[Node]) -> Node:
    while node in free_views:
        node = node.all_input_nodes[0]
    return node


def _chain(view: Node, base: Node) -> list[Node]:
    chain = []
    while view is not base:
        chain.append(view)
        view = view.all_input_nodes[0]
    return chain


def _whole(view: Node, base: Node) -> bool:
    """Whether ``view`` shows every element of ``base`` exactly once."""
    shown, held = view.meta["val"], base.meta["val"]
    if not isinstance(shown, torch.Tensor) or not isinstance(held, torch.Tensor):
        return False
    same = {_aten.view.default, _aten._unsafe_view.default, _aten.permute.default, _aten.unsqueeze.default,
            _aten.squeeze.dim, _aten.squeeze.dims, _aten.squeeze.default, _aten.transpose.int, _aten.t.default,
            _aten.alias.default, _aten.detach.default}  # fmt: skip
    return all(n.target in same for n in _chain(view, base))


def _overwrites_input(copy: Node) -> bool:
    """Whether an ``aten.copy_`` writes a graph input, and nobody reads its result."""
    return isinstance(copy.args[0], Node) and copy.args[0].op == "placeholder" and not copy.users
