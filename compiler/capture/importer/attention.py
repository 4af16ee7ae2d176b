"""Scaled dot-product attention, kept whole:

``"effc.attention"(%q, %k, %v[, %mask]) {causal, scale} -> (%out, %logsumexp)``: ``softmax(q k^T * scale + mask) v`` over
``q`` [b, h, s, d], ``k`` [b, h, l, d], ``v`` [b, h, l, e], a float ``mask`` that broadcasts to [b, h, s, l]. ``causal`` lets row *i* see
the columns up to *i*. Accumulators and the logsumexp ([b, h, s], natural logarithm) are float32, or float64 for float64.
A row that sees nothing gives 0.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from effc.compiler.capture.importer.body import Body
from effc.compiler.capture.importer.builder import literal
from effc.compiler.capture.importer.registry import Op, lowers
from effc.compiler.capture.importer.shapes import reshape
from effc.compiler.capture.importer.types import Scalar, Tensor, is_empty
from effc.compiler.ir.errors import UnsupportedError


@lowers("aten._scaled_dot_product_flash_attention_for_cpu.default")
def _attention(
    op: Op, q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0, causal: bool = False, *, attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> list[Tensor]:  # fmt: skip
    b = op.b
    if dropout:
        raise UnsupportedError("attention with dropout")
    width = q.sizes[-1]
    if scale is None:
        if not isinstance(width, int):
            raise UnsupportedError("attention over a symbolic head size")
        scale = 1 / math.sqrt(width)
    if not isinstance(scale, (int, float)):
        raise UnsupportedError("attention with a symbolic scale")
    if any(is_empty(t.sizes) for t in (q, k, v)):
        raise UnsupportedError("attention over nothing")
    operands = [q, k, v]
    if attn_mask is not None:
        operands.append(
            reshape(b, _float_mask(op, attn_mask, q.dtype), (*[1] * (4 - attn_mask.rank), *attn_mask.sizes))
        )
    out = Tensor("", op.dtype, op.sizes)
    sums = Tensor("", op.dtypes[1], op.results[1])
    name = b.fresh()
    b.lines.append(
        f'    {name}:2 = "effc.attention"({", ".join(t.name for t in operands)}) '
        f"{{causal = {'true' if causal else 'false'}, scale = {literal(float(scale), 'f64')} : f64}} "
        f": ({', '.join(t.type for t in operands)}) -> ({out.type}, {sums.type}) loc({b.location})"
    )
    return [Tensor(f"{name}#0", op.dtype, op.sizes), Tensor(f"{name}#1", sums.dtype, sums.sizes)]


def _float_mask(op: Op, mask: Any, dtype: torch.dtype) -> Tensor:
    """A bool mask (true: visible) as one that is added."""
    if mask.dtype != torch.bool:
        return mask  # type: ignore[no-any-return]

    def point(body: Body, seen: Scalar) -> Scalar:
        return body.select(seen, body.constant(0.0, dtype), body.constant(-math.inf, dtype))

    return op.b.pointwise([mask], mask.sizes, dtype, point)
