"""Borders of zeros that a kernel adds while it reads, so that no buffer holds them."""

from __future__ import annotations

from effc.compiler.codegen.cpu.contraction.chains import chain_length, longest
from effc.compiler.ir.expr import Expr, const, product
from effc.compiler.pipeline.fusion import is_free
from effc.compiler.pipeline.graph import Graph, Op, Tensor
from effc.compiler.pipeline.views import Index, chain, readers


def absorb_borders(graph: Graph) -> None:
    """Make views of the pads with zeros that depthwise convolutions or those of an input of the region, and nobody else, read."""
    returned = {output.tensor for output in graph.outputs}
    images = {source.tensor for source in graph.inputs if source.strides[-1:] == (const(1),)}
    constants = {graph.inputs[i].tensor for i in graph.constants()}
    for op in graph.ops:
        if op.kind != "pad" or op.results[0] in returned or not (_zero(op) and _computed(op)):
            continue
        users = readers(op.results[0])
        outside = chain(op.operands[0])[0] in images - constants
        if users and all(_depthwise(user, op) or (outside and _first(user, op, constants)) for user in users):
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


def _first(op: Op, pad: Op, constants: set[Tensor]) -> bool:
    """Whether ``op`` is a convolution by constant weights of few channels of the image ``pad``: its tiles read the image as it lies, in
    planes of channels. Many channels are better copied together, for vectors and for Winograd's method; so are groups of few.
    """
    if op.kind != "conv" or chain(op.operands[0])[0].producer is not pad or op.operands[0].dtype == "bf16":
        return False
    products = product(op.dims[i] for i in op.reduction_dims).constant
    return (
        not _groups(op)
        and chain(op.operands[1])[0] in constants
        and products is not None
        and products <= longest(chain_length(packed=True))
    )


def _depthwise(op: Op, pad: Op) -> bool:
    """Whether ``op`` is a convolution of the image ``pad`` alone, each of whose output channels sees one input channel: the weights have
    no parallel dim of their own.
    """
    if op.kind != "conv" or chain(op.operands[0])[0].producer is not pad or chain(op.operands[1])[0].producer is pad:
        return False
    image, weights = _names(op)
    return not any(f"d{i}" in weights - image and op.dims[i].constant != 1 for i in op.parallel_dims)


def _groups(op: Op) -> bool:
    image, weights = _names(op)
    return any(f"d{i}" in weights & image and op.dims[i].constant != 1 for i in op.parallel_dims)


def _names(conv: Op) -> tuple[set[str], set[str]]:
    """The dims that image and weights have."""
    image, weights = ({name for e in conv.maps[i] for name in e.variables()} for i in (0, 1))
    return image, weights
