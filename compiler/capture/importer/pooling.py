"""Pooling: windows reduced by max or sum (``effc.op = "pool"``), with the window's shape as an operand that is never read."""

from __future__ import annotations

import math
from typing import Any

import torch

from effc.compiler.capture.importer.body import Body
from effc.compiler.capture.importer.builder import Builder, combiner, identity
from effc.compiler.capture.importer.padding import pad
from effc.compiler.capture.importer.reductions import arg_reduce
from effc.compiler.capture.importer.registry import Op, lowers
from effc.compiler.capture.importer.scatter import scatter
from effc.compiler.capture.importer.shapes import reshape
from effc.compiler.capture.importer.types import Scalar, Size, Tensor, is_empty, is_float, opmath, simplify
from effc.compiler.capture.importer.windows import moving, per_dimension
from effc.compiler.ir.errors import UnsupportedError
from effc.compiler.ir.expr import as_expr


def _padded(
    b: Builder,
    x: Tensor,
    out: tuple[Size, ...],
    kernel: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    value: float | int,
) -> Tensor:
    """``x`` padded so far that every window lies inside, also those that ceil_mode adds at the end."""
    n = len(kernel)
    lead = x.rank - n
    low, high = [0] * lead, [0] * lead
    for i in range(n):
        last = (as_expr(out[lead + i]) - 1) * stride[i] + (kernel[i] - 1) * dilation[i] + 1
        missing = (last - as_expr(x.sizes[lead + i]) - padding[i]).constant
        low.append(padding[i])
        # Symbolic sizes: without ceil_mode no window ends behind the padding, so the full padding is enough.
        high.append(padding[i] if missing is None else max(missing, 0))
    return pad(b, x, low, high, value)


def _windows(lead: int, rank: int, stride: tuple[int, ...], dilation: tuple[int, ...]) -> list[str]:
    taps = [moving(f"d{lead + i}", stride[i], f"d{rank + i}", dilation[i]) for i in range(rank - lead)]
    return [*(f"d{d}" for d in range(lead)), *taps]


def _pool(
    b: Builder, x: Tensor, out: tuple[Size, ...], kind: str, dtype: torch.dtype, init: float | int, kernel: Any, stride: Any,
    dilation: Any,
) -> Tensor:  # fmt: skip
    n, rank = len(kernel), x.rank
    shape = b.empty(dtype, kernel)
    op = combiner(kind, dtype)

    def combine(body: Body, value: Scalar, _shape: Scalar, accumulator: Scalar) -> Scalar:
        return body.binary(op, body.cast(value, dtype), accumulator)

    return b.generic(
        [(x, _windows(rank - n, rank, stride, dilation)), (shape, [f"d{rank + i}" for i in range(n)])],
        b.fill(init, dtype, out),
        identity(rank),
        ["parallel"] * rank + ["reduction"] * n,
        combine,
        'effc.op = "pool"',
    )


@lowers("aten.max_pool2d_with_indices.default", "aten.max_pool3d_with_indices.default")
def _max_pool(
    op: Op, x: Tensor, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> list[Tensor | None]:
    n = 2 if "2d" in op.name else 3
    kernel = per_dimension(kernel, n)
    stride = per_dimension(stride or kernel, n)
    padding, dilation = per_dimension(padding, n), per_dimension(dilation, n)
    b = op.b
    if ceil_mode and not all(isinstance(s, int) for s in x.sizes[-n:]):
        raise UnsupportedError("pooling with ceil_mode and symbolic sizes")
    if is_empty(op.sizes):
        return [b.empty(x.dtype, op.sizes), b.empty(torch.int64, op.sizes)]
    least = -math.inf if is_float(x.dtype) else torch.iinfo(x.dtype).min
    ready = _padded(b, x, op.sizes, kernel, stride, padding, dilation, least)
    values = _pool(b, ready, op.sizes, "max", x.dtype, least, kernel, stride, dilation)
    if 1 not in op.used:
        return [values, None]
    return [values, _positions(b, ready, x, op.sizes, kernel, stride, padding, dilation)]


def _positions(
    b: Builder, ready: Tensor, x: Tensor, out: tuple[Size, ...], kernel: Any, stride: Any, padding: Any, dilation: Any
) -> Tensor:
    """Where each window's maximum lies in its plane of ``x``, counted in row-major order."""
    n, rank = len(kernel), x.rank
    lead = rank - n
    spread = b.empty(x.dtype, (*out, *kernel))
    loops = ["parallel"] * (rank + n)
    windows = b.generic(
        [(ready, _windows(lead, rank, stride, dilation))], spread, identity(rank + n), loops, lambda body, v: v
    )
    found = arg_reduce(b, reshape(b, windows, (*out, math.prod(kernel))), rank, "max")

    def locate(body: Body, tap: Scalar) -> Scalar:
        tap = body.to_index(tap)
        position = body.size(0)
        for i in range(n):
            step = math.prod(kernel[i + 1 :])
            offset = body.binary("arith.remsi", body.binary("arith.divsi", tap, body.size(step)), body.size(kernel[i]))
            start = body.sub(body.mul(body.loop_index(lead + i), body.size(stride[i])), body.size(padding[i]))
            at = body.add(start, body.mul(offset, body.size(dilation[i])))
            position = body.add(body.mul(position, body.size(x.sizes[lead + i])), at)
        return body.from_index(position)

    return b.pointwise([found], out, torch.int64, locate)


@lowers("aten.max_pool2d_with_indices_backward.default")
def _max_pool_backward(
    op: Op,
    grad: Tensor,
    x: Tensor,
    kernel: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: bool,
    indices: Tensor,
) -> Tensor:
    """Each gradient added to the place that gave its maximum."""
    b = op.b
    lead = x.rank - 2
    plane = simplify(as_expr(x.sizes[-1]) * as_expr(x.sizes[-2]))
    cells = simplify(as_expr(grad.sizes[-1]) * as_expr(grad.sizes[-2]))
    dtype = opmath(x.dtype)
    base = b.fill(0, dtype, (*x.sizes[:lead], plane))
    flat = (*grad.sizes[:lead], cells)
    total = scatter(
        b, base, b.cast(reshape(b, grad, flat), dtype), {lead: (reshape(b, indices, flat), identity(lead + 1))},
        {d: d for d in range(lead)}, "add",
    )  # fmt: skip
    return reshape(b, b.cast(total, op.dtype), op.sizes)


@lowers("aten.avg_pool2d.default", "aten.avg_pool3d.default")
def _avg_pool(
    op: Op, x: Tensor, kernel: Any, stride: Any = (), padding: Any = 0, ceil_mode: bool = False,
    count_include_pad: bool = True, divisor_override: int | None = None,
) -> Tensor:  # fmt: skip
    n = 2 if "2d" in op.name else 3
    kernel = per_dimension(kernel, n)
    stride, padding = per_dimension(stride or kernel, n), per_dimension(padding, n)
    b, lead, dtype = op.b, x.rank - n, opmath(x.dtype)
    if not is_float(x.dtype):
        raise UnsupportedError(f"average pooling of {x.dtype}")
    if ceil_mode and not all(isinstance(s, int) for s in x.sizes[-n:]):
        raise UnsupportedError("pooling with ceil_mode and symbolic sizes")
    if is_empty(op.sizes):
        return b.empty(x.dtype, op.sizes)
    one = (1,) * n
    ready = _padded(b, x, op.sizes, kernel, stride, padding, one, 0)
    total = _pool(b, ready, op.sizes, "add", dtype, 0, kernel, stride, one)
    fixed = not ceil_mode and (count_include_pad or not any(padding))

    def divide(body: Body, v: Scalar) -> Scalar:
        if divisor_override or fixed:
            divisor = body.constant(float(divisor_override or math.prod(kernel)), dtype)
        else:
            counted = body.size(1)
            for i in range(n):
                start = body.sub(body.mul(body.loop_index(lead + i), body.size(stride[i])), body.size(padding[i]))
                size = as_expr(x.sizes[lead + i])
                limit = body.size(simplify(size + padding[i]))
                end = body.binary("arith.minsi", body.add(start, body.size(kernel[i])), limit)
                if not count_include_pad:
                    start = body.binary("arith.maxsi", start, body.size(0))
                    end = body.binary("arith.minsi", end, body.size(simplify(size)))
                counted = body.mul(counted, body.sub(end, start))
            divisor = body.cast(counted, dtype)
        return body.cast(body.binary("arith.divf", v, divisor), op.dtype)

    return b.pointwise([total], op.sizes, op.dtype, divide)


@lowers("aten._adaptive_avg_pool2d.default", "aten._adaptive_avg_pool3d.default")
def _adaptive_avg_pool(op: Op, x: Tensor, output: Any) -> Tensor:
    """Window *i* of *m* over *s* elements is [floor(i s / m), ceil((i + 1) s / m)): of varying length, so masked."""
    n = 2 if "2d" in op.name else 3
    b, rank, dtype = op.b, x.rank, opmath(x.dtype)
    lead = rank - n
    ins, outs = x.sizes[lead:], op.sizes[lead:]
    if not all(isinstance(s, int) for s in (*ins, *outs)):
        raise UnsupportedError("adaptive pooling with symbolic sizes")
    if is_empty(op.sizes) or is_empty(x.sizes):
        return b.fill(math.nan, op.dtype, op.sizes)
    pairs = [(int(str(s)), int(str(m))) for s, m in zip(ins, outs, strict=True)]
    longest = [max(-(-(i + 1) * s // m) - i * s // m for i in range(m)) for s, m in pairs]

    def limits(body: Body, i: int) -> tuple[Scalar, Scalar]:
        s, m = pairs[i]
        at = body.loop_index(lead + i)
        start = body.binary("arith.divsi", body.mul(at, body.size(s)), body.size(m))
        ceiling = body.add(body.mul(body.add(at, body.size(1)), body.size(s)), body.size(m - 1))
        return start, body.binary("arith.divsi", ceiling, body.size(m))

    def gather(body: Body, _shape: Scalar, accumulator: Scalar) -> Scalar:
        at = [body.loop_index(d) for d in range(lead)]
        inside = body.constant(True, torch.bool)
        for i in range(n):
            start, end = limits(body, i)
            place = body.add(start, body.loop_index(rank + i))
            inside = body.binary("arith.andi", inside, body.compare("lt", place, end))
            at.append(body.binary("arith.minsi", place, body.size(pairs[i][0] - 1)))
        value = body.cast(body.extract(x, at), dtype)
        return body.binary("arith.addf", body.select(inside, value, body.like(0, value)), accumulator)

    total = b.generic(
        [(b.empty(dtype, longest), [f"d{rank + i}" for i in range(n)])],
        b.fill(0, dtype, op.sizes),
        identity(rank),
        ["parallel"] * rank + ["reduction"] * n,
        gather,
        'effc.op = "pool"',
    )

    def divide(body: Body, v: Scalar) -> Scalar:
        counted = body.size(1)
        for i in range(n):
            start, end = limits(body, i)
            counted = body.mul(counted, body.sub(end, start))
        return body.cast(body.binary("arith.divf", v, body.cast(counted, dtype)), op.dtype)

    return b.pointwise([total], op.sizes, op.dtype, divide)
