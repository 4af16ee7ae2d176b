"""Borders of zeros that a kernel adds while it reads, so that no buffer holds them."""

from __future__ import annotations

from effc.compiler.ir.expr import Expr
from effc.compiler.pipeline.fusion import is_free
from effc.compiler.pipeline.graph import Graph, Op
from effc.compiler.pipeline.views import Index, chain, readers


def absorb_borders(graph: Graph) -> None:
    """Make views of the pads with zeros that depthwise convolutions, and nobody else, read."""
    returned = {output.tensor for output in graph.outputs}
    for op in graph.ops:
        if op.kind != "pad" or op.results[0] in returned or not (_zero(op) and _computed(op)):
            continue
        users = readers(op.results[0])
        if users and all(_depthwise(user, op) for user in users):
            op.kind = "border"


def bounds(border: Op, index: Index) -> list[tuple[Expr, Expr]]:
    """``(position, size)`` of the source's dims in which ``index`` of the result may lie beyond the source."""
    source, result = border.operands[0].sizes, border.results[0].sizes
    low = border.attributes["low"]
    return [(i - a, s) for i, a, s, r in zip(index, low, source, result, strict=True) if s != r]


def _zero(pad: Op) -> bool:
    assert pad.body is not None
    filler = pad.body.instrs[pad.body.yields[0]]
    return filler.op == "constant" and filler.get("value") == 0


def _computed(pad: Op) -> bool:
    producer = chain(pad.operands[0])[0].producer
    return producer is None or not is_free(producer)


def _depthwise(op: Op, pad: Op) -> bool:
    """Whether ``op`` is a convolution of the image ``pad`` alone, each of whose output channels sees one input channel: the weights have
    no parallel dim of their own.
    """
    if op.kind != "conv" or chain(op.operands[0])[0].producer is not pad or chain(op.operands[1])[0].producer is pad:
        return False
    image, weights = ({name for e in op.maps[i] for name in e.variables()} for i in (0, 1))
    return not any(f"d{i}" in weights - image and op.dims[i].constant != 1 for i in op.parallel_dims)
