"""Scaled dot-product attention, kept whole:

``"effc.attention"(%q, %k, %v[, %mask]) {causal, nan_rows, scale} -> (%out[, %logsumexp])``: ``softmax(q k^T * scale + mask) v`` over
``q`` [b, h, s, d], ``k`` [b, h, l, d], ``v`` [b, h, l, e], a float ``mask`` that broadcasts to [b, h, s, l]. ``causal`` lets row *i* see
the columns up to *i*. Accumulators and the logsumexp ([b, h, s], natural logarithm) are float32, or float64 for float64.
A row that sees nothing gives 0, or NaN with ``nan_rows``: torch's op does the one, the formula the other.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from effc.compiler.capture.attention import OVERLOAD
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
    return _of_torch(op, q, k, v, attn_mask, dropout, causal, scale, 2)


@lowers("aten._scaled_dot_product_flash_attention.default")
def _flash(
    op: Op, q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0, causal: bool = False, debug: bool = False, *,
    scale: float | None = None,
) -> list[Tensor | None]:  # fmt: skip
    """On a GPU; behind the result and the logsumexp is what its own backward needs."""
    return _of_gpu(op, q, k, v, None, dropout, causal, scale, 2 if 1 in op.used else 1)


@lowers("aten._scaled_dot_product_efficient_attention.default", "aten._scaled_dot_product_cudnn_attention.default")
def _efficient(
    op: Op, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, logsumexp: bool, dropout: float = 0.0,
    causal: bool = False, debug: bool = False, *, scale: float | None = None,
) -> list[Tensor | None]:  # fmt: skip
    """On a GPU; the logsumexp, which only its own backward reads, is laid out as it likes."""
    return _of_gpu(op, q, k, v, mask, dropout, causal, scale, 1)


def _of_gpu(
    op: Op, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, causal: bool, scale: Any, count: int
) -> list[Tensor | None]:
    """torch's op, of whose results the first ``count`` are there."""
    if not op.used <= set(range(count)):
        raise UnsupportedError("attention whose gradient is taken by a kernel that reads what the forward kernel left")
    return [*_of_torch(op, q, k, v, mask, dropout, causal, scale, count), *[None] * (len(op.results) - count)]


def _of_torch(
    op: Op, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, causal: bool, scale: Any, count: int
) -> list[Tensor]:
    """torch's op, with its first ``count`` results."""
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
    return _written(op, q, k, v, mask, float(scale), count, causal=causal, nan_rows=False)


@lowers(OVERLOAD)
def _written_out(op: Op, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Of a formula in the model (`effc.compiler.capture.attention`)."""
    if any(is_empty(t.sizes) for t in (q, k, v)):
        raise UnsupportedError("attention over nothing")
    return _written(op, q, k, v, mask, scale, 1, causal=False, nan_rows=True)[0]


def _written(
    op: Op,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float,
    count: int,
    *,
    causal: bool,
    nan_rows: bool,
) -> list[Tensor]:
    """The op, with ``count`` results."""
    b = op.b
    operands = [q, k, v]
    if mask is not None:
        operands.append(reshape(b, _float_mask(op, mask, q.dtype), (*[1] * (4 - mask.rank), *mask.sizes)))
    results = [Tensor("", t, s) for t, s in zip(op.dtypes[:count], op.results[:count], strict=True)]
    name = b.fresh()
    flags = f"causal = {_word(causal)}, nan_rows = {_word(nan_rows)}"
    b.lines.append(
        f'    {name}:{len(results)} = "effc.attention"({", ".join(t.name for t in operands)}) '
        f"{{{flags}, scale = {literal(scale, 'f64')} : f64}} "
        f": ({', '.join(t.type for t in operands)}) -> ({', '.join(r.type for r in results)}) loc({b.location})"
    )
    return [Tensor(f"{name}#{i}", r.dtype, r.sizes) for i, r in enumerate(results)]


def _word(flag: bool) -> str:
    return "true" if flag else "false"


def _float_mask(op: Op, mask: Any, dtype: torch.dtype) -> Tensor:
    """A bool mask (true: visible) as one that is added."""
    if mask.dtype != torch.bool:
        return mask  # type: ignore[no-any-return]

    def point(body: Body, seen: Scalar) -> Scalar:
        return body.select(seen, body.constant(0.0, dtype), body.constant(-math.inf, dtype))

    return op.b.pointwise([mask], mask.sizes, dtype, point)
