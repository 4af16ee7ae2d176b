"""Compiles a function through Dynamo, AOTAutograd, the importer and the evaluator, region by region, to compare with eager."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from graph_ir_eval import evaluate
from torch._dynamo.backends.common import aot_autograd
from torch._functorch._aot_autograd.schemas import AOTDispatchCompiler
from torch.fx import GraphModule, Node

from effc.compiler.capture.decompositions import decompositions
from effc.compiler.capture.importer import Region, import_region, supported


@dataclass
class Capture:
    """What a run imported: regions in order, and the nodes that were refused with the reason."""

    regions: list[Region] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)


def whole_graph(capture: Capture, gm: GraphModule) -> Callable[..., Any]:
    """The graph as one region, run by the evaluator; AssertionError lists what is not importable."""
    nodes = list(gm.graph.nodes)
    inputs = [n for n in nodes if n.op in ("placeholder", "get_attr")]
    calls = [n for n in nodes if n.op == "call_function"]
    for node in calls:
        reason = supported(node)
        if reason is not None and node.target is not operator.getitem:
            capture.refused.append((str(node.target), reason))
    if capture.refused:
        return gm.forward
    returned = nodes[-1].args[0]
    copies = [n for n in calls if n.target is torch.ops.aten.copy_.default]
    tensors = [n for n in returned if isinstance(n, Node) and isinstance(n.meta["val"], torch.Tensor)]
    outputs = [*dict.fromkeys([*tensors, *copies])]
    mutations = {n: n.args[0] for n in copies}
    region = import_region(calls, inputs, outputs, params={}, mutations=mutations, name="graph")
    capture.regions.append(region)

    def forward(*args: Any) -> list[Any]:
        given = dict(zip([n for n in inputs if n.op == "placeholder"], args, strict=True))
        for n in inputs:
            if n.op == "get_attr":
                given[n] = getattr(gm, str(n.target))
        symbols = {
            name: given[s.node] if s.dim is None else given[s.node].shape[s.dim]
            for name, s in zip(region.symbols, region.symbol_sources, strict=True)
        }
        results = evaluate(region.text, [given[n] for n in region.inputs], symbols)
        values = {}
        for node, value in zip(region.outputs, results, strict=True):
            meta = node.meta["val"]
            value = value.view(torch.uint8) if meta.dtype == torch.uint8 else value
            if node in mutations:
                given[mutations[node]].copy_(value)
            # The placement that torch expects: AOTAutograd builds views of it.
            placed = torch.empty_strided(value.shape, strides_of(meta, value), dtype=value.dtype)
            values[node] = placed.copy_(value)
        return [
            values[n] if isinstance(n, Node) and n in values else symbolic(n, given) if isinstance(n, Node) else n
            for n in returned
        ]

    return forward


def strides_of(meta: torch.Tensor, value: torch.Tensor) -> tuple[int, ...]:
    """Dense strides in the order of ``meta``'s."""
    hints = [s if isinstance(s, int) else s.node.hint for s in meta.stride()]
    order = sorted(range(value.dim()), key=lambda d: (hints[d], -d))
    strides, step = [0] * value.dim(), 1
    for d in order:
        strides[d] = step
        step *= max(value.shape[d], 1)
    return tuple(strides)


def symbolic(node: Node, given: dict[Node, Any]) -> Any:
    """The value of a SymInt node, computed from its arguments."""
    if node in given:
        return given[node]
    args = [symbolic(a, given) if isinstance(a, Node) else a for a in node.args]
    return node.target(*args)  # type: ignore[operator]


def boxed_compiler(capture: Capture) -> AOTDispatchCompiler:
    """A compiler for AOTAutograd that runs graphs in the evaluator and records them."""

    def compiler(gm: GraphModule, example_inputs: Sequence[object]) -> Callable[..., Any]:
        forward = whole_graph(capture, gm)

        def boxed(inputs: list[Any]) -> Any:
            given = list(inputs)
            inputs.clear()
            return forward(*given)

        boxed._boxed_call = True  # type: ignore[attr-defined]
        return boxed

    return compiler


def compile_and_run(
    function: Callable[..., Any], args: Sequence[Any], dynamic: bool | None = False, grad: bool = False
) -> tuple[Any, Capture]:
    """``function(*args)`` through the importer and the evaluator."""
    capture = Capture()

    compiler = boxed_compiler(capture)
    torch._dynamo.reset()
    backend = aot_autograd(
        fw_compiler=compiler,
        bw_compiler=compiler,
        inference_compiler=compiler,
        decompositions=decompositions(),
        keep_inference_input_mutations=True,
    )
    compiled = torch.compile(function, backend=backend, dynamic=dynamic)
    with contextlib.nullcontext() if grad else torch.no_grad():
        result = compiled(*args)
    return result, capture


def agrees(function: Callable[..., Any], *args: Any, tolerance: float, dynamic: bool | None = False) -> Capture:
    """``function`` is imported whole and gives eager's results: to ``tolerance``, relative or absolute; NaN where it has
    them; dtypes and shapes alike.
    """
    expected = function(*args)
    found, capture = compile_and_run(function, args, dynamic=dynamic)
    assert capture.refused == []
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance, equal_nan=True)
    return capture
