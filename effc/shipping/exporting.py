"""A whole model as one ATen graph with its weights apart: what ``effc.save`` compiles.

The graph is torch.export's, with mutations as ``aten.copy_`` into the inputs at its end (as AOTAutograd keeps them), and the
sizes of inputs as nodes at its head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._functorch._aot_autograd.descriptors import PlainAOTInput
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind, TensorArgument
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_unflatten
from torch.utils._sympy.numbers import int_oo

from effc.compiler.capture.decompositions import decompositions
from effc.compiler.capture.importer.types import as_size
from effc.compiler.ir.errors import InputError, UnsupportedError
from effc.compiler.ir.expr import as_expr
from effc.runtime.interface import Interface, TensorGuard, solvable
from effc.runtime.structure import Tree, flatten

_WEIGHTS = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


@dataclass(frozen=True)
class Exported:
    """``gm``: the graph; its placeholders are the ``weights`` (by name) and the tensors of the ``interface``, in the order of
    ``order``: a weight's name, or the number of an interface's leaf. Its outputs fill the leaves of ``outputs``.
    """

    gm: GraphModule
    names: dict[int, str]
    weights: Mapping[str, torch.Tensor]
    order: tuple[str | int, ...]
    interface: Interface
    outputs: Tree


@dataclass(frozen=True)
class _Leaf:
    number: int


def export(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], dynamic_shapes: Any) -> Exported:
    """``model``, in eval mode, for inputs like these. UnsupportedError: torch cannot trace it as a whole."""
    try:
        with torch.no_grad():
            program = torch.export.export(model, args, dict(kwargs), dynamic_shapes=dynamic_shapes, strict=False)
            program = program.run_decompositions(decompositions())
    except Exception as error:  # export raises whatever the model's own code or Dynamo raises
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UnsupportedError(
            f"the model cannot be saved, because torch.export does not trace it as a whole: {reason}"
        ) from error
    return _Reader(program).read()


class _Reader:
    def __init__(self, program: ExportedProgram) -> None:
        self.program = program
        self.gm = program.graph_module
        self.placeholders = self.gm.graph.find_nodes(op="placeholder")
        self.inputs = list(zip(self.placeholders, program.graph_signature.input_specs, strict=True))

    def read(self) -> Exported:
        mutated = self._keep_mutations()
        names: dict[int, str] = {}
        weights: dict[str, torch.Tensor] = {}
        order: list[str | int] = []
        leaves: list[TensorGuard | Any] = []
        for number, (node, spec) in enumerate(self.inputs):
            node.meta["desc"] = PlainAOTInput(number)
            if spec.kind in _WEIGHTS:
                assert spec.target is not None
                names[number], weights[spec.target] = spec.target, self._weight(spec.target)
                order.append(spec.target)
            elif spec.kind == InputKind.USER_INPUT and isinstance(spec.arg, TensorArgument | ConstantArgument):
                order.append(len(leaves))
                leaves.append(
                    spec.arg.value if isinstance(spec.arg, ConstantArgument) else _guard(node, node in mutated)
                )
            else:
                raise UnsupportedError(
                    f"the model cannot be saved: its input {node.name} is {spec.kind.name} {spec.arg}"
                )
        interface = self._interface(leaves)
        self._add_sizes()
        self.gm.recompile()
        return Exported(self.gm, names, weights, tuple(order), interface, self._outputs())

    def _weight(self, target: str) -> torch.Tensor:
        found = self.program.state_dict.get(target)
        if found is None:
            found = self.program.constants[target]
        if not isinstance(found, torch.Tensor):
            raise UnsupportedError(f"the model cannot be saved: its constant {target} is {type(found).__name__}")
        return found.detach()

    def _interface(self, leaves: Sequence[Any]) -> Interface:
        in_spec = self.program.call_spec.in_spec
        assert in_spec is not None
        tree, order = flatten(tree_unflatten([_Leaf(i) for i in range(len(leaves))], in_spec), _is_leaf)
        known = solvable([e for leaf in leaves if isinstance(leaf, TensorGuard) for e in leaf.sizes])
        ranges = {
            str(symbol): (int(found.lower), None if found.upper == int_oo else int(found.upper))
            for symbol, found in self.program.range_constraints.items()
            if str(symbol) in known
        }
        used = {v for g in leaves if isinstance(g, TensorGuard) for e in (*g.sizes, *g.strides) for v in e.variables()}
        if used - ranges.keys():
            raise UnsupportedError(
                f"the model cannot be saved: no input has the size {', '.join(sorted(used - ranges.keys()))} by itself"
            )
        if [leaf.number for leaf in order] != list(range(len(leaves))):
            raise InputError("the inputs are nested in an order that effc does not keep: pass plain tuples and dicts")
        return Interface(tree, leaves, ranges)

    # -- the graph --------------------------------------------------------------------------------------------------
    def _keep_mutations(self) -> set[Node]:
        """Results that replace an input become ``aten.copy_``; the inputs concerned."""
        graph, by_name = self.gm.graph, {spec.target: n for n, spec in self.inputs if spec.target}
        by_name |= {n.name: n for n, spec in self.inputs if spec.kind == InputKind.USER_INPUT}
        (output,) = graph.find_nodes(op="output")
        mutated, kept = set(), []
        for value, spec in zip(output.args[0], self.program.graph_signature.output_specs, strict=True):
            if spec.kind in (OutputKind.BUFFER_MUTATION, OutputKind.USER_INPUT_MUTATION, OutputKind.PARAMETER_MUTATION):
                target = by_name[spec.target]
                with graph.inserting_before(output):
                    copy = graph.call_function(torch.ops.aten.copy_.default, (target, value))
                    copy.meta["val"] = target.meta["val"]
                mutated.add(target)
            elif spec.kind == OutputKind.USER_OUTPUT:
                kept.append(value)
            else:
                raise UnsupportedError(f"the model cannot be saved: a result of it is a {spec.kind.name}")
        output.args = (tuple(kept),)
        return mutated

    def _add_sizes(self) -> None:
        """A node for every dynamic size of an input: regions take their symbols from these."""
        graph = self.gm.graph
        first = next(n for n in graph.nodes if n.op != "placeholder")
        done: set[str] = set()
        for node, _ in self.inputs:
            value = node.meta.get("val")
            sizes: tuple[int | torch.SymInt, ...] = tuple(value.shape) if isinstance(value, torch.Tensor) else ()
            for dim, size in enumerate(sizes):
                if isinstance(size, torch.SymInt) and str(size) not in done:
                    done.add(str(size))
                    with graph.inserting_before(first):
                        made = graph.call_function(torch.ops.aten.sym_size.int, (node, dim))
                        made.meta["val"] = size

    def _outputs(self) -> Tree:
        out_spec = self.program.call_spec.out_spec
        assert out_spec is not None
        count = out_spec.num_leaves
        tree, order = flatten(tree_unflatten([_Leaf(i) for i in range(count)], out_spec), _is_leaf)
        if [leaf.number for leaf in order] != list(range(count)):
            raise InputError(
                "the outputs are nested in an order that effc does not keep: return plain tuples and dicts"
            )
        return tree


def _is_leaf(value: Any) -> bool:
    return isinstance(value, _Leaf)


def _guard(node: Node, mutated: bool) -> TensorGuard:
    value = node.meta["val"]
    sizes, strides = (tuple(as_expr(as_size(n)) for n in part) for part in (value.shape, value.stride()))
    return TensorGuard(str(value.dtype).removeprefix("torch."), sizes, strides, mutated)
