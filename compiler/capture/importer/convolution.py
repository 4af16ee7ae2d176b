"""Convolutions of any rank, and their gradients, as one ``linalg.generic`` with window maps (``effc.op = "conv"``).

Padding is apart (``tensor.pad``), groups are a dimension of their own, 16-bit floats accumulate in float32. Transposed convolutions
and input gradients are made of plain ones (`transposed`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from effc.compiler.capture.importer.body import Body
from effc.compiler.capture.importer.builder import Builder
from effc.compiler.capture.importer.padding import pad
from effc.compiler.capture.importer.registry import Op, lowers
from effc.compiler.capture.importer.shapes import reshape
from effc.compiler.capture.importer.transposed import transposed_convolution
from effc.compiler.capture.importer.types import Scalar, Size, Tensor, is_empty, is_float, opmath, simplify
from effc.compiler.capture.importer.windows import Window, moving, multiply_add, per_dimension, split_channels
from effc.compiler.ir.errors import UnsupportedError
from effc.compiler.ir.expr import as_expr


def convolve(b: Builder, x: Tensor, w: Tensor, spatial: Sequence[Size], window: Window, groups: int) -> Tensor:
    """``x`` [n, c, …] (padded) with ``w`` [o, c/g, k…] -> [n, o, spatial…] in the accumulator's dtype."""
    n = len(spatial)
    dtype = opmath(x.dtype)
    out_channels = as_expr(w.sizes[0])
    channels: tuple[Size, ...] = (simplify(out_channels),)
    if groups > 1:
        x = split_channels(b, x, 1, groups)
        w = split_channels(b, w, 0, groups)
        channels = (groups, simplify(out_channels // groups))
    sizes = (x.sizes[0], *channels, *spatial)
    init = b.fill(0, dtype, sizes)
    if is_empty(sizes) or is_empty(x.sizes) or is_empty(w.sizes):
        return reshape(b, init, (x.sizes[0], simplify(out_channels), *spatial))
    rank = len(sizes)
    g = ["d1"] if groups > 1 else []
    o, c = f"d{rank - n - 1}", f"d{rank}"
    taps = [f"d{rank + 1 + i}" for i in range(n)]
    at = [moving(f"d{rank - n + i}", window.stride[i], taps[i], window.dilation[i]) for i in range(n)]
    result = b.generic(
        [(x, ["d0", *g, c, *at]), (w, [*g, o, c, *taps])],
        init,
        [f"d{i}" for i in range(rank)],
        ["parallel"] * rank + ["reduction"] * (1 + n),
        multiply_add(dtype),
        'effc.op = "conv"',
    )
    return reshape(b, result, (x.sizes[0], simplify(out_channels), *spatial))


def _window(n: int, stride: Any, padding: Any, dilation: Any, output_padding: Any) -> Window:
    return Window(*(per_dimension(v, n) for v in (stride, padding, dilation, output_padding)))


@lowers("aten.convolution.default")
def _convolution(
    op: Op, x: Tensor, w: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, transposed: bool,
    output_padding: Any, groups: Size,
) -> Tensor:  # fmt: skip
    b, n = op.b, x.rank - 2
    if not is_float(x.dtype) or x.dtype != w.dtype:
        raise UnsupportedError(f"a convolution of {x.dtype} with {w.dtype}")
    if not isinstance(groups, int):
        raise UnsupportedError("a convolution with a symbolic number of groups")
    if not n or is_empty(op.sizes):
        return b.empty(op.dtype, op.sizes)
    window = _window(n, stride, padding, dilation, output_padding)

    def finish(sums: Tensor) -> Tensor:
        if bias is None:
            return b.cast(sums, op.dtype)
        each = reshape(b, bias, (bias.sizes[0], *[1] * (sums.rank - 2)))

        def add(body: Body, v: Scalar, c: Scalar) -> Scalar:
            return body.cast(body.add(v, body.cast(c, sums.dtype)), op.dtype)

        return b.pointwise([sums, each], sums.sizes, op.dtype, add)

    if transposed:
        return transposed_convolution(b, x, w, op.sizes[2:], window, groups, finish)
    around = [0, 0, *window.padding]
    return finish(convolve(b, pad(b, x, around, around, 0), w, op.sizes[2:], window, groups))


@lowers("aten.convolution_backward.default")
def _convolution_backward(
    op: Op, grad: Tensor, x: Tensor, w: Tensor, bias_sizes: Any, stride: Any, padding: Any, dilation: Any,
    transposed: bool, output_padding: Any, groups: int, mask: list[bool],
) -> list[Tensor | None]:  # fmt: skip
    """Gradients of input, kernel and bias of a plain convolution; the input's is a transposed convolution of ``grad``."""
    b, n = op.b, x.rank - 2
    if transposed:
        raise UnsupportedError("the gradient of a transposed convolution")
    if is_empty(x.sizes) or is_empty(grad.sizes):
        raise UnsupportedError("the gradient of an empty convolution")
    window = _window(n, stride, padding, dilation, output_padding)
    results: list[Tensor | None] = [None, None, None]
    if mask[0]:
        results[0] = _input_gradient(b, grad, x, w, window, groups)
    if mask[1]:
        results[1] = b.cast(_kernel_gradient(b, grad, x, w, window, groups), w.dtype)
    if mask[2]:
        total = b.reduce(grad, [d for d in range(grad.rank) if d != 1], "add", opmath(grad.dtype))
        results[2] = b.cast(total, grad.dtype)
    return results


def _input_gradient(b: Builder, grad: Tensor, x: Tensor, w: Tensor, window: Window, groups: int) -> Tensor:
    """``out[n, c, p] = sum over o and taps k of grad[n, o, q] * w[o, c, k]``, ``p + padding = q * stride + k * dilation``."""
    return transposed_convolution(b, grad, w, x.sizes[2:], window, groups, lambda sums: b.cast(sums, x.dtype))


def _kernel_gradient(b: Builder, grad: Tensor, x: Tensor, w: Tensor, window: Window, groups: int) -> Tensor:
    """``out[o, c, k] = sum over n and positions p of grad[n, o, p] * x[n, c, p * stride + k * dilation]``."""
    n = x.rank - 2
    around = [0, 0, *window.padding]
    x = pad(b, x, around, around, 0)
    sizes: tuple[Size, ...] = w.sizes
    if groups > 1:
        grad, x = split_channels(b, grad, 1, groups), split_channels(b, x, 1, groups)
        sizes = (groups, as_expr(w.sizes[0]).constant // groups, *w.sizes[1:])  # type: ignore[operator]
    dtype = opmath(x.dtype)
    rank = len(sizes)
    g = ["d0"] if groups > 1 else []
    o, c = f"d{len(g)}", f"d{len(g) + 1}"
    positions = [f"d{rank + 1 + i}" for i in range(n)]
    at = [moving(positions[i], window.stride[i], f"d{rank - n + i}", window.dilation[i]) for i in range(n)]
    result = b.generic(
        [(grad, [f"d{rank}", *g, o, *positions]), (x, [f"d{rank}", *g, c, *at])],
        b.fill(0, dtype, sizes),
        [f"d{i}" for i in range(rank)],
        ["parallel"] * rank + ["reduction"] * (1 + n),
        multiply_add(dtype),
        'effc.op = "conv"',
    )
    return reshape(b, result, w.sizes)
