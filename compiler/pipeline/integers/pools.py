"""Maxima over windows of dequantized values are taken of the codes, and dequantized: the larger code is the larger value."""

from __future__ import annotations

from effc.compiler.ir.expr import var
from effc.compiler.pipeline.body_builder import BodyBuilder
from effc.compiler.pipeline.graph import Body, BodyInstr, Op, Tensor
from effc.compiler.pipeline.integers.dequantized import Codes, Decoder, over, pointwise


def _takes_maxima(op: Op) -> bool:
    """Whether it is a max pool: a second operand, which is not read, has the window's shape."""
    if op.kind != "generic" or op.body is None or op.attributes.get("reduce") != ("max",) or len(op.operands) != 2:
        return False
    return op.results[0].dtype in ("f32", "bf16") and op.body.instrs[op.body.yields[0]].op == "operand"


def pooled(op: Op, decoder: Decoder) -> list[Op] | None:
    """What replaces ``op`` where it is a max pool of dequantized values, padded or not."""
    if not _takes_maxima(op):
        return None
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
    result = Tensor("", "i8", op.results[0].sizes)
    body = Body((BodyInstr("operand", (), "i8", (("number", 0),)),), (0,))
    attributes = {**op.attributes, "reduce": ("umax" if codes.unsigned else "max",)}
    shape = op.operands[1]
    maxima = Op(
        "generic",
        [image, shape],
        [result],
        op.location,
        op.dims,
        op.iterators,
        op.maps,
        op.result_maps,
        body,
        attributes,
    )
    result.producer = maxima
    return [*made, maxima, dequantized(op, result, codes)]


def _pads_with_least(pad: Op) -> bool:
    filler = pad.body.instrs[pad.body.yields[0]] if pad.body is not None else None
    return filler is not None and filler.op == "constant" and filler.get("value") == "-inf"


def _padded(pad: Op, codes: Codes) -> Op:
    """The pad of the codes, with the least one around them."""
    made = over(pad, codes.tensor)
    made.body = Body((BodyInstr("constant", (), "i8", (("value", 0 if codes.unsigned else -128),)),), (0,))
    return made


def dequantized(op: Op, source: Tensor, codes: Codes) -> Op:
    """The result of ``op`` as what ``codes`` say of the bytes in ``source``."""
    b = BodyBuilder()
    value = b.cast(b.operand(0, "i8"), "f32", unsigned=codes.unsigned)
    if codes.zero:
        value = b.op("arith.subf", value, b.constant(codes.zero, "f32"))
    for scale in codes.scales:
        value = b.op("arith.mulf", value, b.constant(scale.value, "f32"))
    result = op.results[0]
    value = b.cast(value, result.dtype)
    dims = tuple(var(f"d{k}") for k in range(len(result.sizes)))
    made = pointwise([source], [dims], result.sizes, b.body(value), result.dtype, op.location)
    made.results, result.producer = [result], made
    return made
