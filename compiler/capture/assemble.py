"""Puts compiled regions and ATen ops together again: a divided graph becomes one Python function.

The function is FX's generated code: a call of each region, the other ops by ATen in between, every tensor dropped
after its last use. It takes its arguments as one list and empties it (AOTAutograd's boxed convention), so that inputs
die as early as in eager.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.graph import _BoxedCodeGen

from effc.compiler.capture.importer.region import Region
from effc.compiler.capture.partition import Group, Partition, is_scalar, is_view

#: ``call(symbols, tensors)`` gives the region's results less those that are mutations.
RegionCall = Callable[[Sequence[int], Sequence[torch.Tensor]], Sequence[torch.Tensor]]
Boxed = Callable[[list[Any]], Any]


@dataclass(frozen=True)
class CompiledGroup:
    """A group of the partition with its import and the callable that runs it."""

    group: Group
    region: Region
    call: RegionCall


def assemble(gm: GraphModule, divided: Partition, compiled: Mapping[int, CompiledGroup]) -> Boxed:
    """The function for ``gm``; ``compiled`` holds each group by its position in ``divided.groups``."""
    writer = _Writer()
    for node in gm.graph.nodes:
        if node.op == "placeholder":
            writer.values[node] = writer.graph.placeholder(node.name)
    number = 0
    for step in divided.order:
        if isinstance(step, Group):
            writer.call_region(number, compiled[number])
            number += 1
        elif not _is_symbolic_arithmetic(step):
            writer.value(step)
    (output,) = (n for n in gm.graph.nodes if n.op == "output")
    writer.graph.output(torch.fx.map_arg(output.args[0], writer.value))
    return _function(writer.graph, gm)


class _Writer:
    """The new graph. ``values`` maps nodes of the old one; views and symbolic arithmetic are written at first need."""

    def __init__(self) -> None:
        self.graph = Graph()
        self.graph.set_codegen(_BoxedCodeGen())
        self.values: dict[Node, Node] = {}
        self.sizes: dict[tuple[Node, int], Node] = {}

    def value(self, node: Node) -> Node:
        if node not in self.values:
            for operand in node.all_input_nodes:
                self.value(operand)
            self.values[node] = self._copy(node)
        return self.values[node]

    def _copy(self, node: Node) -> Node:
        if node.target is torch.ops.prims.convert_element_type.default:  # ATen has it natively, prims in Python
            source, dtype = node.args
            assert isinstance(source, Node)
            return self.graph.call_function(torch.ops.aten._to_copy.default, (self.values[source],), {"dtype": dtype})
        return self.graph.node_copy(node, self.value)

    def call_region(self, number: int, made: CompiledGroup) -> None:
        def call(symbols: Sequence[int], tensors: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
            return made.call(symbols, tensors)

        call.__name__ = call.__qualname__ = f"effc_region_{number}"
        symbols = tuple(self._symbol(s.node, s.dim) for s in made.region.symbol_sources)
        tensors = tuple(self.value(n) for n in made.region.inputs)
        results = self.graph.call_function(call, (symbols, tensors))
        fresh = [n for n in made.region.outputs if n not in made.group.mutations]
        for i, node in enumerate(fresh):
            result = self.graph.call_function(operator.getitem, (results, i))
            if node.meta["val"].dtype == torch.uint8:  # MLIR's i8 has no sign; the program returns int8
                result = self.graph.call_method("view", (result, torch.uint8))
            self.values[node] = result

    def _symbol(self, node: Node, dim: int | None) -> Node:
        if dim is None:
            return self.value(node)
        if (node, dim) not in self.sizes:
            self.sizes[node, dim] = self.graph.call_method("size", (self.value(node), dim))
        return self.sizes[node, dim]


def _is_symbolic_arithmetic(node: Node) -> bool:
    return is_scalar(node) and not any(isinstance(n.meta.get("val"), torch.Tensor) for n in node.all_input_nodes)


def _function(graph: Graph, root: GraphModule) -> Boxed:
    code = graph.python_code("self")
    scope = dict(code.globals)
    exec(compile(code.src, "<effc graph>", "exec"), scope)
    forward = scope["forward"]

    def run(arguments: list[Any]) -> Any:
        return forward(root, arguments)

    run._boxed_call = True  # type: ignore[attr-defined]
    return run


def from_aten(node: Node) -> bool:
    """Whether ATen makes the tensor, so that its strides at run time may differ from what FakeTensor said."""
    while is_view(node):
        node = node.all_input_nodes[0]
    return node.op == "call_function"
