"""Bytes that are codes of fewer bits times small integers (`compress/dual.py`), read as these codes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from effc.compiler.ir.expr import product, var
from effc.compiler.pipeline.body_builder import BodyBuilder
from effc.compiler.pipeline.graph import Tensor
from effc.compiler.pipeline.integers.dequantized import Codes, Decoder, Term, pointwise

#: Greatest magnitude of a symmetric byte.
_MOST = 127
#: Codes of a group from which on they, packed in whole words, and their scale are fewer bytes.
_LEAST = 16


def grains_of(decoder: Decoder, codes: Codes, limits_of: Callable[[Tensor], tuple[int, int] | None]) -> Codes | None:
    """``codes`` by the codes of fewer bits that its bytes are made of, with their zero point and scale; None where they are no such, or no
    fewer bytes.

    ``limits_of``: the least and the greatest code in a tensor, where they are known. The model multiplies in 8 bits, which wrap around: the
    scale is checked not to be so large.
    """
    grains = decoder.regrouped(codes.tensor)
    limits = None if grains is None else limits_of(grains.tensor)
    if grains is None or limits is None or len(grains.scales) != 1 or len(grains.zeros) > 1:
        return None
    (scale,) = grains.scales
    zeros = [z.tensor for z in grains.zeros if z.tensor is not None and z.index == scale.index]
    if scale.tensor is None or len(zeros) != len(grains.zeros):
        return None
    if (product(grains.tensor.sizes).constant or 0) < _LEAST * (product(scale.tensor.sizes).constant or 1):
        return None
    b = BodyBuilder()
    value = b.operand(0, scale.tensor.dtype)
    zero = b.cast(b.operand(1, zeros[0].dtype), "i32") if zeros else b.constant(0, "i32")
    low, high = (b.constant(limit, "i32") for limit in limits)
    most = b.op("arith.maxsi", b.op("arith.subi", high, zero), b.op("arith.subi", zero, low))
    wide = b.cast(value, "i32")
    largest = b.op("arith.muli", most, b.op("arith.maxsi", wide, b.op("arith.subi", b.constant(0, "i32"), wide)))
    fits = b.op("arith.cmpi", largest, b.constant(_MOST, "i32"), dtype="i1", attributes=(("predicate", "sle"),))
    b.check(fits, "codes times the scale of their group do not fit 8 bits: quantize the model again")
    dims = tuple(var(f"d{k}") for k in range(len(scale.tensor.sizes)))
    sources = [scale.tensor, *zeros]
    place = codes.tensor.producer.location if codes.tensor.producer is not None else ""
    made = pointwise(sources, [dims] * len(sources), scale.tensor.sizes, b.body(value), scale.tensor.dtype, place)
    return replace(
        grains,
        scales=(Term(0.0, made.results[0], scale.index), *codes.scales),
        zeros=(*grains.zeros, *codes.zeros),
        made=(*codes.made, *grains.made, made),
    )
