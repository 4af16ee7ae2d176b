"""Which channels of a graph's tensors are coupled: what has to go from other tensors where one channel of a weight goes.

The dependency graph of Fang et al., "DepGraph: Towards Any Structural Pruning" (CVPR 2023), element by element on an ATen graph: each
dimension of a parameter starts with channels of its own (`Track`), and every operation says which of its operands' channels stay or go
together (`Classes`), and which its result has. A channel that reaches a result of the graph, an operation that is not understood, or one
whose result would change in the channels that stay (a mean over channels), has to stay. What is left may go::

    %y = convolution(%x, %w, …)      channel c of %y goes with w[c]; channel k of %x with w[:, k]
    %z = add(%y, %shortcut)          c goes from both
    %m = var_mean(%z, [1])           its channels stay
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule, Node

from effc.compiler.capture.source import op_name, source_of
from effc.compiler.compress.channels.classes import Classes
from effc.compiler.compress.channels.rules import RULES, Result
from effc.compiler.compress.channels.tracks import Track, Tracks, all_whole, merged, settled


class Coupling:
    """Of the graph of ``gm``. ``params``: its inputs that may be made smaller, by name; ``products``: operations that multiply an
    activation with one of them. ``tracks``: of each node (a tuple of those of an operation with several results).
    """

    def __init__(self, gm: GraphModule, params: Mapping[Node, str], products: Collection[Node]) -> None:
        self.params, self.products = params, products
        self.classes = Classes()
        self.tracks: dict[Node, Result] = {}
        for node in gm.graph.nodes:
            self.tracks[node] = self._follow(node)
        #: The dimension along which each track cuts its tensor.
        self.dims: dict[Track, int | None] = {}
        for node, result in self.tracks.items():
            for track in flat(result):
                self.dims[track] = settled(self.classes, track, f"{self.place(node)} takes them apart")

    def of(self, node: Any) -> Tracks:
        """The tracks of an operand that is one tensor."""
        found = self.tracks[node] if isinstance(node, Node) else []
        assert isinstance(found, list), "several results are read by getitem"
        return found

    def cut(self, node: Node) -> list[tuple[int, Track]]:
        """Along which dimensions the one tensor of ``node`` may be cut."""
        return [(d, t) for t in self.of(node) if (d := self.dims[t]) is not None]

    def roots(self, track: Track) -> list[int]:
        """The class of each channel along the dimension in which ``track`` cuts its tensor."""
        dim = self.dims[track]
        assert dim is not None, "see cut"
        labels = np.moveaxis(track.labels, dim, 0)
        found: list[int] = self.classes.roots(labels.reshape(len(labels), -1)[:, 0]).tolist()
        return found

    def merged(self, node: Node, operands: Sequence[Any], rank: int) -> Tracks:
        """Of corresponding elements of ``operands``, broadcast to ``rank`` dimensions."""
        aligned = []
        for operand in operands:
            if isinstance(operand, Node) and isinstance(operand.meta.get("val"), torch.Tensor):
                sizes = operand.meta["val"].shape
                front = (1,) * (rank - len(sizes))
                wide = [False] * len(front) + [not isinstance(s, int) or s != 1 for s in sizes]
                aligned.append(([Track(t.labels.reshape(front + t.labels.shape)) for t in self.of(operand)], wide))
        return self.joined(node, aligned)

    def joined(self, node: Node, operands: Sequence[tuple[Tracks, Sequence[bool]]]) -> Tracks:
        """See `merged`: here with the tracks of each operand."""
        return merged(self.classes, operands, f"{self.place(node)} joins them with what stays whole")

    def added(self, node: Node, made: Tracks, bias: Any, dim: int) -> Tracks:
        """Of a product's result, of which ``made`` is told, and a ``bias`` that is added along ``dim`` (`[C]`), or of the result's rank."""
        if not isinstance(bias, Node):
            return made
        rank, own = node.meta["val"].dim(), bias.meta["val"].dim()
        behind = rank - 1 - dim if own == 1 else 0
        shape = (1,) * (rank - own - behind)
        tracks = [Track(t.labels.reshape(*shape, *t.labels.shape, *(1,) * behind)) for t in self.of(bias)]
        wide = [False] * len(shape) + [s != 1 for s in bias.meta["val"].shape] + [False] * behind
        return self.joined(node, [(made, [True] * rank), (tracks, wide)])

    def whole(self, node: Node, operand: Any, dims: Iterable[int]) -> Tracks:
        """``operand`` of ``node``, which needs all channels along ``dims``."""
        return self.some_whole(node, self.of(operand), dims)

    def some_whole(self, node: Node, tracks: Tracks, dims: Iterable[int]) -> Tracks:
        return all_whole(self.classes, tracks, dims, f"{self.place(node)} needs all of them")

    def fix(self, tracks: Tracks, reason: str) -> None:
        for track in tracks:
            self.classes.fix(track.labels, reason)

    def place(self, node: Node) -> str:
        """An operation and the user's line, for reasons."""
        return f"{op_name(node)} at {source_of(node)}"

    def _follow(self, node: Node) -> Result:
        if node in self.params:
            return self._own(node)
        if node.op == "call_function":
            if node.target is operator.getitem:
                source, place = _operands(node)
                several = self.tracks[source]
                return several[place] if isinstance(several, tuple) else []
            rule = RULES.get(node.target)
            if rule is not None:
                return rule(self, node)
            if is_pointwise(node):
                return self.merged(node, node.all_input_nodes, node.meta["val"].dim())
        why = "they reach the output of this graph" if node.op == "output" else f"{self.place(node)} is not followed"
        for operand in node.all_input_nodes:
            self.fix(flat(self.tracks[operand]), why)
        value = node.meta.get("val")
        return tuple([] for _ in value) if isinstance(value, tuple | list) else []

    def _own(self, node: Node) -> Tracks:
        """Of a parameter: each dimension's."""
        sizes = node.meta["val"].shape
        found = []
        for dim, size in enumerate(sizes):
            if isinstance(size, int) and size > 1:
                shape = [1] * len(sizes)
                shape[dim] = size
                found.append(Track(self.classes.new(size).reshape(shape)))
        return found


def _operands(node: Node) -> Sequence[Any]:
    return node.args


def flat(result: Result) -> Tracks:
    return result if isinstance(result, list) else [t for tracks in result for t in tracks]


def is_pointwise(node: Node) -> bool:
    """Whether it computes each element from corresponding ones, into a tensor of its own."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or target._schema.is_mutable:
        return False
    return torch.Tag.pointwise in target.tags and isinstance(node.meta.get("val"), torch.Tensor)
