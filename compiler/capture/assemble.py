"""Puts compiled regions and ATen ops together again: a divided graph becomes one Python function.

The function is FX's generated code: a call of each region, the other ops by ATen in between, every tensor dropped
after its last use. It takes its arguments as one list and empties it (AOTAutograd's boxed convention), so that inputs
die as early as in eager.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.graph import _BoxedCodeGen

from effc.compiler.capture.importer.region import Region
from effc.compiler.capture.layouts import restrided
from effc.compiler.capture.partition import Group, Partition, is_scalar, is_view

if TYPE_CHECKING:
    from effc.compiler.build import Built
    from effc.compiler.gpu.build import GpuBuilt

#: ``call(symbols, tensors)`` gives the region's results less those that are mutations.
RegionCall = Callable[[Sequence[int], Sequence[torch.Tensor]], Sequence[torch.Tensor]]
Boxed = Callable[[list[Any]], Any]


@dataclass(frozen=True)
class CompiledGroup:
    """A group of the partition with its import and the callable that runs it.

    ``validates``: the call copies inputs whose placement is not as the program expects.
    """

    group: Group
    region: Region
    built: Built | GpuBuilt
    call: RegionCall
    validates: bool


@dataclass(frozen=True)
class Assembled:
    """``graph``: calls of regions (each a function of ``regions``) and of ATen ops; ``root`` holds what its ``get_attr`` nodes
    name.
    """

    graph: Graph
    regions: Mapping[Callable[[], None], CompiledGroup]
    root: GraphModule

    def function(self) -> Boxed:
        """The graph as a Python function."""
        code = self.graph.python_code("self")
        calls = {stub: made.call for stub, made in self.regions.items()}
        scope = {name: calls.get(value, value) for name, value in code.globals.items()}
        exec(compile(code.src, "<effc graph>", "exec"), scope)
        run = partial(scope["forward"], self.root)
        run._boxed_call = True  # type: ignore[attr-defined]
        return run


def assemble(gm: GraphModule, divided: Partition, compiled: Mapping[int, CompiledGroup]) -> Assembled:
    """``gm`` put together again; ``compiled`` holds each group by its position in ``divided.groups``."""
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
    return Assembled(writer.graph, writer.regions, gm)


class _Writer:
    """The new graph. ``values`` maps nodes of the old one; views and symbolic arithmetic are written at first need."""

    def __init__(self) -> None:
        self.graph = Graph()
        self.graph.set_codegen(_ListCodeGen())
        self.regions: dict[Callable[[], None], CompiledGroup] = {}
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
        if node.target is torch.ops.aten.view.default and restrided(node.all_input_nodes[0]):
            return self.graph.call_function(
                torch.ops.aten.reshape.default,
                (self.values[node.all_input_nodes[0]], *torch.fx.map_arg(node.args[1:], self.value)),
            )
        return self.graph.node_copy(node, self.value)

    def call_region(self, number: int, made: CompiledGroup) -> None:
        def region() -> None:
            """Stands in the graph for ``made.call``, which FX could not name."""

        region.__name__ = region.__qualname__ = f"effc_region_{number}"
        self.regions[region] = made
        symbols = tuple(self._symbol(s.node, s.dim) for s in made.region.symbol_sources)
        tensors = tuple(self.value(n) for n in made.region.inputs)
        results = self.graph.call_function(region, (symbols, tensors))
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


class _ListCodeGen(_BoxedCodeGen):
    """As FX's boxed convention, but takes the list apart in one step: a model has hundreds of weights."""

    def gen_fn_def(self, free_vars: list[str], maybe_return_annotation: str, *, expanded_def: bool = False) -> str:
        names = [v.split(":")[0].split("=")[0].strip() for v in free_vars if v != "self"]
        taken = f"\n    [{', '.join(names)}] = arguments" if names else ""
        return f"def {self._func_name}(self, arguments){maybe_return_annotation}:{taken}\n    arguments.clear()"


def _is_symbolic_arithmetic(node: Node) -> bool:
    return is_scalar(node) and not any(isinstance(n.meta.get("val"), torch.Tensor) for n in node.all_input_nodes)


def from_aten(node: Node) -> bool:
    """Whether ATen makes the tensor, so that its strides at run time may differ from what FakeTensor said."""
    while is_view(node):
        node = node.all_input_nodes[0]
    return node.op == "call_function"
