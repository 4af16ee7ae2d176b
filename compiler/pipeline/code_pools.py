"""Maxima over windows of dequantized values are taken of the codes, and dequantized: the larger code is the larger value."""

from __future__ import annotations

from effc.compiler.ir.expr import var
from effc.compiler.pipeline.body_builder import BodyBuilder
from effc.compiler.pipeline.dequantized import Codes, Decoder, over, pointwise
from effc.compiler.pipeline.graph import Body, BodyInstr, Graph, Op, Tensor, replace_ops


def pool_codes(graph: Graph) -> None:
    """Rewrite the max pools of ``graph`` that read dequantized values, padded or not."""
    decoder = Decoder()
    replace_ops(graph, lambda op: _rewritten(op, decoder) if _takes_maxima(op) else None, lambda op: None)


def _takes_maxima(op: Op) -> bool:
    """Whether it is a max pool: a second operand, which is not read, has the window's shape."""
    if op.kind != "generic" or op.body is None or op.attributes.get("reduce") != ("max",) or len(op.operands) != 2:
        return False
    return op.results[0].dtype == "f32" and op.body.instrs[op.body.yields[0]].op == "operand"


def _rewritten(op: Op, decoder: Decoder) -> list[Op] | None:
    source = op.operands[0]
    pad = source.producer if source.producer is not None and source.producer.kind == "pad" else None
    if pad is not None and not _pads_with_least(pad):
        return None
    codes = decoder.decode(source if pad is None else pad.operands[0])
    if (
        codes is None
        or codes.zero is None
        or not codes.scales
        or any(s.tensor is not None or s.value <= 0 for s in codes.scales)
    ):
        return None
    made, image = list(codes.made), codes.tensor
    if pad is not None:
        made.append(_padded(pad, codes))
        image = made[-1].results[0]
    pooled = Tensor("", "i8", op.results[0].sizes)
    body = Body((BodyInstr("operand", (), "i8", (("number", 0),)),), (0,))
    attributes = {**op.attributes, "reduce": ("umax" if codes.unsigned else "max",)}
    shape = op.operands[1]
    maxima = Op(
        "generic",
        [image, shape],
        [pooled],
        op.location,
        op.dims,
        op.iterators,
        op.maps,
        op.result_maps,
        body,
        attributes,
    )
    pooled.producer = maxima
    return [*made, maxima, _dequantized(op, pooled, codes)]


def _pads_with_least(pad: Op) -> bool:
    filler = pad.body.instrs[pad.body.yields[0]] if pad.body is not None else None
    return filler is not None and filler.op == "constant" and filler.get("value") == "-inf"


def _padded(pad: Op, codes: Codes) -> Op:
    """The pad of the codes, with the least one around them."""
    made = over(pad, codes.tensor)
    made.body = Body((BodyInstr("constant", (), "i8", (("value", 0 if codes.unsigned else -128),)),), (0,))
    return made


def _dequantized(op: Op, pooled: Tensor, codes: Codes) -> Op:
    b = BodyBuilder()
    value = b.cast(b.operand(0, "i8"), "f32", unsigned=codes.unsigned)
    if codes.zero:
        value = b.op("arith.subf", value, b.constant(codes.zero, "f32"))
    for scale in codes.scales:
        value = b.op("arith.mulf", value, b.constant(scale.value, "f32"))
    result = op.results[0]
    dims = tuple(var(f"d{k}") for k in range(len(result.sizes)))
    made = pointwise([pooled], [dims], result.sizes, b.body(value), "f32", op.location)
    made.results, result.producer = [result], made
    return made
