"""Matrix products, as ``linalg.contract``: float32 accumulators for 16-bit floats, rounded once at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from effc.compiler.capture.importer.body import Body
from effc.compiler.capture.importer.builder import Builder
from effc.compiler.capture.importer.registry import Op, lowers
from effc.compiler.capture.importer.types import Scalar, Size, Tensor, is_empty, is_float, opmath
from effc.compiler.ir.errors import UnsupportedError


def contract(b: Builder, x: Tensor, y: Tensor, spec: str, sizes: Sequence[Size], dtype: torch.dtype) -> Tensor:
    """The product that the einsum ``spec`` (``"mk,kn->mn"``) names, accumulated and returned in ``dtype``."""
    if x.dtype != y.dtype:
        raise UnsupportedError(f"a product of {x.dtype} and {y.dtype}")
    if x.dtype == torch.bool or x.dtype == torch.uint8:
        raise UnsupportedError(f"a matrix product of {x.dtype}")
    init = b.fill(0, dtype, sizes)
    if any(is_empty(s) for s in (sizes, x.sizes, y.sizes)):
        return init
    left, right, out = spec.replace("->", ",").split(",")
    letters = out + "".join(dict.fromkeys(c for c in left + right if c not in out))
    place = {c: f"d{i}" for i, c in enumerate(letters)}
    dims = ", ".join(place.values())
    maps = ", ".join(f"affine_map<({dims}) -> ({', '.join(place[c] for c in term)})>" for term in (left, right, out))
    text = (
        f"linalg.contract indexing_maps = [{maps}] ins({x.name}, {y.name} : {x.type}, {y.type}) "
        f"outs({init.name} : {init.type}) -> {init.type}"
    )
    return Tensor(b.emit(text), dtype, tuple(sizes))


_PRODUCTS = {
    "aten.mm.default": "mk,kn->mn",
    "aten.bmm.default": "bmk,bkn->bmn",
    "aten.mv.default": "mk,k->m",
    "aten.dot.default": "k,k->",
    "aten.vdot.default": "k,k->",
    "aten.mm.dtype": "mk,kn->mn",
    "aten.bmm.dtype": "bmk,bkn->bmn",
}


@lowers(*_PRODUCTS)
def _product(op: Op, x: Tensor, y: Tensor, *_: Any) -> Tensor:
    return op.b.cast(contract(op.b, x, y, _PRODUCTS[op.name], op.sizes, opmath(op.dtype)), op.dtype)


_WITH_ADDEND = {
    "aten.addmm.default": "mk,kn->mn",
    "aten.baddbmm.default": "bmk,bkn->bmn",
    "aten.addmv.default": "mk,k->m",
    "aten.addbmm.default": "bmk,bkn->mn",
    "aten.addr.default": "m,n->mn",
}


@lowers(*_WITH_ADDEND)
def _add_product(op: Op, addend: Tensor, x: Tensor, y: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
    """``beta * addend + alpha * (x @ y)``; beta = 0 ignores the addend, NaN included."""
    wide = opmath(op.dtype)
    product = contract(op.b, x, y, _WITH_ADDEND[op.name], op.sizes, wide)

    def combine(body: Body, p: Scalar, a: Scalar | None = None) -> Scalar:
        if alpha != 1:
            p = body.mul(p, body.number(alpha, wide))
        if a is not None:
            a = body.cast(a, wide)
            p = body.add(p, a if beta == 1 else body.mul(a, body.number(beta, wide)))
        return body.cast(p, op.dtype)

    if not is_float(op.dtype) and (isinstance(alpha, float) or isinstance(beta, float)):
        raise UnsupportedError("an integer product scaled by a float")
    return op.b.pointwise([product] if beta == 0 else [product, addend], op.sizes, op.dtype, combine)
