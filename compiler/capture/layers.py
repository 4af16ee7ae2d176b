"""``Layer``: one of the layers that run one graph, each with weights of its own.

Behind a graph break Dynamo compiles the ``forward`` of a layer once for all layers that are alike. What is exact derives weights for each
(`runtime.weights`); what compresses them, or plans, needs a graph of each layer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, GraphModule

from effc.compiler.capture.owner import Owner
from effc.compiler.capture.parameters import statics_of


@dataclass(frozen=True, eq=False)
class Layer:
    """``names`` of the parameters and buffers among the inputs of Dynamo's graph (`static_names`); ``weights``: values of the inputs, of
    which these are looked at.
    """

    names: dict[int, str]
    weights: Sequence[Any]


def copied(gm: GraphModule) -> GraphModule:
    """Which a compiler may change."""
    return GraphModule(gm, copy.deepcopy(gm.graph))


class Layers:
    """What each layer that calls ``graph``, of AOTAutograd, runs: ``make(layer)``, for ``first`` and those that come. A call with tensors
    that ``owner`` has no other names for, as after a change of the first one's, runs what the first one does.
    """

    _boxed_call = True  # AOTAutograd's convention: one list of arguments, which the callee empties

    def __init__(
        self, graph: Graph, first: Layer, owner: Owner, make: Callable[[Layer], Callable[[list[Any]], Any]]
    ) -> None:
        numbers = {node: i for i, node in enumerate(graph.find_nodes(op="placeholder", sort=True))}
        statics = statics_of(graph, first.names)
        self._places = {numbers[node]: s.position for node, s in statics.items() if not s.attributes}
        self._first, self._owner, self._make = first, owner, make
        known = tuple(id(first.weights[position]) for position in self._places.values())
        self._default = make(first)
        self._functions = {known: self._default}
        self._named = {self._key(first.names): self._default}

    def __call__(self, arguments: list[Any]) -> Any:
        tensors = [arguments[place] for place in self._places]
        function = self._functions.get(tuple(map(id, tensors)))
        return (function or self._function(tensors))(arguments)

    def _function(self, tensors: Sequence[torch.Tensor]) -> Callable[[list[Any]], Any]:
        """Of tensors that have not been met."""
        known = self._owner.names()
        found = {p: known.of(t) for p, t in zip(self._places.values(), tensors, strict=True)}
        names = {p: name for p, name in found.items() if name is not None}
        if len(names) < len(found):
            return self._default
        key = self._key(names)
        if key not in self._named:
            given = dict(zip(self._places.values(), tensors, strict=True))
            weights = [given.get(i, weight) for i, weight in enumerate(self._first.weights)]
            self._named[key] = self._make(Layer({**self._first.names, **names}, weights))
        self._functions[tuple(map(id, tensors))] = self._named[key]
        return self._named[key]

    def _key(self, names: Mapping[int, str]) -> tuple[str, ...]:
        return tuple(names[position] for position in self._places.values())
