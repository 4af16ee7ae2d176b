"""Products of matrices of bytes, summed in int32."""

from __future__ import annotations

import torch

from effc.compiler.capture.importer.body import Body
from effc.compiler.capture.importer.registry import Op, lowers
from effc.compiler.capture.importer.types import Scalar, Tensor, is_empty
from effc.compiler.ir.errors import UnsupportedError

_BYTES = (torch.int8, torch.uint8)


@lowers("aten._int_mm.default")
def _integer_product(op: Op, x: Tensor, y: Tensor) -> Tensor:
    """``x`` [m, k] times ``y`` [k, n]; each of them signed or not."""
    if x.dtype not in _BYTES or y.dtype not in _BYTES:
        raise UnsupportedError(f"an integer product of {x.dtype} and {y.dtype}")
    init = op.b.fill(0, torch.int32, op.sizes)
    if is_empty(x.sizes) or is_empty(op.sizes):
        return init

    def multiply_add(body: Body, a: Scalar, c: Scalar, accumulator: Scalar) -> Scalar:
        return body.add(body.mul(body.cast(a, torch.int32), body.cast(c, torch.int32)), accumulator)

    factors = [(x, ["d0", "d2"]), (y, ["d2", "d1"])]
    loops = ["parallel", "parallel", "reduction"]
    return op.b.generic(factors, init, ["d0", "d1"], loops, multiply_add, 'effc.op = "contract"')
