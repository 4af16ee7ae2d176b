"""Work that depends on parameters alone moves to a program of its own, run once and again when they change.

Batch-norm scales, casts of weights under autocast, masks from buffers: whatever has no operand but parameters and constants, and no
symbol, whose value may be another at the next call. The values that the rest of the region needs become extra inputs of it, called
*prepared*.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from effc.compiler.ir.expr import Expr
from effc.compiler.pipeline.attention import mask_strides
from effc.compiler.pipeline.fusion import is_free
from effc.compiler.pipeline.graph import Graph, GraphInput, GraphOutput, Op, Tensor
from effc.compiler.pipeline.padding import arranged
from effc.compiler.pipeline.placement import row_major
from effc.compiler.pipeline.views import chain
from effc.compiler.pipeline.zeros import Zeros, kept_zeros


def split_prepared(graph: Graph) -> tuple[Graph | None, list[Tensor]]:
    """The program of what is static and its results (whose producers the caller cuts, by ``cut``); None where nothing is."""
    static: set[Tensor] = {source.tensor for source in graph.inputs if source.param}
    updated = {graph.inputs[o.mutates].tensor for o in graph.outputs if o.mutates is not None}
    static -= updated
    if not static:
        return None, []
    inside: set[Op] = set()
    free: set[Tensor] = set()
    for op in graph.ops:
        if _symbolic(op, frozenset(graph.symbols)):
            continue
        if is_free(op) or (op.is_view and op.operands[0] in free):
            free.update(op.results)
        elif op.kind not in ("scatter", "attention") and all(t in static or t in free for t in op.operands):
            static.update(op.results)
            inside.add(op)
    results: list[Tensor] = []
    for op in graph.ops:
        if op not in inside:
            _collect(op.operands, inside, results)
    _collect([o.tensor for o in graph.outputs], inside, results)
    if not results:
        return None, []
    ops = [op for op in graph.ops if op in inside or any(t in free for t in op.results)]
    outputs = [GraphOutput(t, _strides(t, _zeros(graph, t)), None) for t in results]
    read = {t for op in ops for t in op.operands} | set(results)
    inputs = [source for source in graph.inputs if source.tensor in static and source.tensor in read]
    return Graph((), inputs, ops, outputs), results


def _symbolic(op: Op, symbols: frozenset[str]) -> bool:
    """Whether a size, a bound or a value of ``op`` depends on a symbol."""
    sizes = [t.sizes for t in (*op.operands, *op.results)]
    body = [i.attributes for i in op.body.instrs] if op.body else []
    parts = _exprs((sizes, op.dims, op.maps, op.result_maps, tuple(op.attributes.values()), body))
    return any(not symbols.isdisjoint(e.variables()) for e in parts)


def _exprs(value: Any) -> Iterator[Expr]:
    """Every ``Expr`` in nested sequences."""
    if isinstance(value, Expr):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _exprs(item)


def _collect(tensors: list[Tensor], inside: set[Op], results: list[Tensor]) -> None:
    """The computed roots behind ``tensors`` (views of a parameter stay views)."""
    for tensor in tensors:
        root = chain(tensor)[0]
        if root.producer in inside and root not in results:
            results.append(root)


def cut(graph: Graph, results: list[Tensor]) -> Graph:
    """The region without its static part: ``results`` become inputs, named ``prepared``."""
    inputs = list(graph.inputs)
    for tensor in results:
        zeros = _zeros(graph, tensor)
        known = None if zeros is None else zeros.sparsity
        inputs.append(GraphInput(tensor, _strides(tensor, zeros), "prepared", sparsity=known))
    for tensor in results:
        tensor.producer = None
    alive: set[Tensor] = set()
    kept: list[Op] = []
    stack = [o.tensor for o in graph.outputs]
    while stack:
        tensor = stack.pop()
        if tensor in alive:
            continue
        alive.add(tensor)
        if tensor.producer is not None:
            stack.extend(tensor.producer.operands)
    kept = [op for op in graph.ops if any(t in alive and t.producer is op for t in op.results)]
    for tensor in {t for op in graph.ops for t in (*op.operands, *op.results)}:
        tensor.users = [u for u in tensor.users if u in kept]
    return Graph(graph.symbols, inputs, kept, graph.outputs)


def _zeros(graph: Graph, tensor: Tensor) -> Zeros | None:
    """What is known of the zeros of a prepared tensor."""
    return kept_zeros(tensor, {i.tensor: i.sparsity for i in graph.inputs if i.sparsity is not None})


def _strides(tensor: Tensor, zeros: Zeros | None) -> tuple[Expr, ...]:
    """Of a prepared tensor: as its reader likes them; blocks of zeros stay blocks in memory."""
    if zeros is not None:
        return arranged(tensor.sizes, zeros.order)[0]
    return mask_strides(tensor) or row_major(tensor.sizes)
