"""Convolutions of any rank, and their gradients, as one ``linalg.generic`` with window maps (``effc.op = "conv"``).

Padding is apart (``tensor.pad``), groups are a dimension of their own, 16-bit floats accumulate in float32. A transposed
convolution is a plain one over an input with zeros between its elements, with the kernel flipped.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from effc.compiler.capture.importer.body import Body
from effc.compiler.capture.importer.builder import Builder
from effc.compiler.capture.importer.padding import insert_slice, pad
from effc.compiler.capture.importer.registry import Op, lowers
from effc.compiler.capture.importer.shapes import permute, reshape
from effc.compiler.capture.importer.transposed import spread
from effc.compiler.capture.importer.types import Scalar, Size, Tensor, is_empty, is_float, opmath, simplify
from effc.compiler.ir.errors import UnsupportedError
from effc.compiler.ir.expr import as_expr, floordiv


@dataclass(frozen=True)
class Window:
    """One number for each spatial dimension."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    output_padding: tuple[int, ...]


def per_dimension(values: Any, n: int) -> tuple[int, ...]:
    values = [values] if isinstance(values, int) else list(values)
    if not all(isinstance(v, int) for v in values):
        raise UnsupportedError("symbolic strides, padding or dilation")
    return tuple(values * n if len(values) == 1 else values)


def moving(start: str, stride: int, tap: str, dilation: int) -> str:
    """The place that a window's tap reads: ``start * stride + tap * dilation``."""
    return f"{scaled(start, stride)} + {scaled(tap, dilation)}"


def scaled(dim: str, factor: int) -> str:
    return dim if factor == 1 else f"{dim} * {factor}"


def times(a: Size, c: int, offset: int = 0) -> Size:
    return simplify(as_expr(a) * c + offset)


def convolve(
    b: Builder, x: Tensor, w: Tensor, spatial: Sequence[Size], window: Window, groups: int, transposed: bool = False
) -> Tensor:
    """``x`` [n, c, …] (padded) with ``w`` [o, c/g, k…] (transposed: [c, k…, o/g]) -> [n, o, spatial…] in the accumulator's dtype."""
    n = len(spatial)
    dtype = opmath(x.dtype)
    kernel = w.sizes[1:-1] if transposed else w.sizes[2:]
    out_channels = as_expr(w.sizes[-1]) * groups if transposed else as_expr(w.sizes[0])
    channels: tuple[Size, ...] = (simplify(out_channels),)
    if groups > 1:
        x = _split_channels(b, x, 1, groups)
        w = _split_channels(b, w, 0, groups)
        channels = (groups, simplify(out_channels // groups))
    sizes = (x.sizes[0], *channels, *spatial)
    init = b.fill(0, dtype, sizes)
    if is_empty(sizes) or is_empty(x.sizes) or is_empty(w.sizes):
        return reshape(b, init, (x.sizes[0], simplify(out_channels), *spatial))
    rank = len(sizes)
    g = ["d1"] if groups > 1 else []
    o, c = f"d{rank - n - 1}", f"d{rank}"
    at = [moving(f"d{rank - n + i}", window.stride[i], f"d{rank + 1 + i}", window.dilation[i]) for i in range(n)]
    taps = [f"d{rank + 1 + i}" for i in range(n)]
    result = b.generic(
        [(x, ["d0", *g, c, *at]), (w, [*g, *((c, *taps, o) if transposed else (o, c, *taps))])],
        init,
        [f"d{i}" for i in range(rank)],
        ["parallel"] * rank + ["reduction"] * (1 + len(kernel)),
        multiply_add(dtype),
        'effc.op = "conv"',
    )
    return reshape(b, result, (x.sizes[0], simplify(out_channels), *spatial))


def multiply_add(dtype: torch.dtype) -> Any:
    def function(body: Body, a: Scalar, c: Scalar, accumulator: Scalar) -> Scalar:
        return body.add(body.mul(body.cast(a, dtype), body.cast(c, dtype)), accumulator)

    return function


def _split_channels(b: Builder, x: Tensor, dim: int, groups: int) -> Tensor:
    size = x.sizes[dim]
    if not isinstance(size, int):
        raise UnsupportedError("a grouped convolution with symbolic channels")
    return reshape(b, x, (*x.sizes[:dim], groups, size // groups, *x.sizes[dim + 1 :]))


def transpose_input(b: Builder, x: Tensor, kernel: Sequence[Size], window: Window) -> Tensor:
    """``x`` with ``stride - 1`` zeros between its elements, padded so that a plain convolution gives the transposed one."""
    n = len(kernel)
    if not all(isinstance(k, int) for k in kernel):
        raise UnsupportedError("a transposed convolution with a symbolic kernel")
    if any(s != 1 for s in window.stride):
        spread = tuple(times(s, d, 1 - d) for s, d in zip(x.sizes[2:], window.stride, strict=True))
        zeros = b.fill(0, x.dtype, (*x.sizes[:2], *spread))
        x = insert_slice(b, x, zeros, [0] * x.rank, x.sizes, [1, 1, *window.stride])
    reach = [window.dilation[i] * (int(str(kernel[i])) - 1) - window.padding[i] for i in range(n)]
    low = [0, 0, *reach]
    high = [0, 0, *(r + p for r, p in zip(reach, window.output_padding, strict=True))]
    return pad(b, x, low, high, 0)


def flip_kernel(b: Builder, w: Tensor, first: Sequence[int] = (), step: Sequence[int] = ()) -> Tensor:
    """``w`` [c, o, k…] -> [c, k…, o], its spatial dimensions reversed; of each only the taps ``first + i * step`` (default: all)."""
    n = w.rank - 2
    first, step = first or (0,) * n, step or (1,) * n
    counts = [
        simplify(floordiv(as_expr(k) - f + s - 1, as_expr(s))) for k, f, s in zip(w.sizes[2:], first, step, strict=True)
    ]
    if all(k == 1 for k in w.sizes[2:]):
        return permute(b, w, [0, *range(2, w.rank), 1])

    def read(body: Body) -> Scalar:
        at = [body.loop_index(d) for d in range(w.rank)]
        taps = []
        for d in range(n):
            last = body.size(times(counts[d], step[d], first[d] - step[d]))
            taps.append(body.sub(last, body.mul(body.size(step[d]), at[1 + d])))
        return body.extract(w, [at[0], at[-1], *taps])

    return b.pointwise([], (w.sizes[0], *counts, w.sizes[1]), w.dtype, read)


def _window(n: int, stride: Any, padding: Any, dilation: Any, output_padding: Any) -> Window:
    return Window(*(per_dimension(v, n) for v in (stride, padding, dilation, output_padding)))


def _apart(x: Tensor, w: Tensor, window: Window, groups: int) -> bool:
    """Whether the windows of a transposed convolution neither overlap nor leave gaps, and none is cut off."""
    plain = tuple(w.sizes[2:]) == window.stride and not any((*window.padding, *window.output_padding))
    known = groups == 1 or isinstance(x.sizes[1], int)
    return plain and all(d == 1 for d in window.dilation) and known and not is_empty(x.sizes) and not is_empty(w.sizes)


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
    if transposed and _apart(x, w, window, groups):
        result = spread(b, x, w, groups, multiply_add(opmath(x.dtype)))
    elif transposed:
        ready = transpose_input(b, x, w.sizes[2:], window)
        unit = Window((1,) * n, (0,) * n, window.dilation, (0,) * n)
        result = convolve(b, ready, flip_kernel(b, w), op.sizes[2:], unit, groups, transposed=True)
    else:
        around = [0, 0, *window.padding]
        result = convolve(b, pad(b, x, around, around, 0), w, op.sizes[2:], window, groups)
    if bias is None:
        return b.cast(result, op.dtype)
    bias = reshape(b, bias, (bias.sizes[0], *[1] * n))

    def finish(body: Body, v: Scalar, c: Scalar) -> Scalar:
        return body.cast(body.add(v, body.cast(c, result.dtype)), op.dtype)

    return b.pointwise([result, bias], op.sizes, op.dtype, finish)


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
        results[0] = b.cast(_input_gradient(b, grad, x.sizes, w, window, groups), x.dtype)
    if mask[1]:
        results[1] = b.cast(_kernel_gradient(b, grad, x, w, window, groups), w.dtype)
    if mask[2]:
        total = b.reduce(grad, [d for d in range(grad.rank) if d != 1], "add", opmath(grad.dtype))
        results[2] = b.cast(total, grad.dtype)
    return results


def _input_gradient(b: Builder, grad: Tensor, sizes: Sequence[Size], w: Tensor, window: Window, groups: int) -> Tensor:
    """``out[n, c, p] = sum over o and taps k of grad[n, o, q] * w[o, c, k]``, ``p + padding = q * stride + k * dilation``.

    Positions of one remainder by the stride (a *phase*) meet the same taps: each phase is a plain convolution, and is written
    into its places of the result.
    """
    n = len(window.stride)
    unit = Window((1,) * n, (0,) * n, window.dilation, (0,) * n)
    if all(s == 1 for s in window.stride):
        low = [times(w.sizes[2 + i], window.dilation[i], -window.dilation[i] - window.padding[i]) for i in range(n)]
        high = [simplify(as_expr(sizes[2 + i]) + window.padding[i] - grad.sizes[2 + i]) for i in range(n)]
        ready = pad(b, grad, [0, 0, *low], [0, 0, *high], 0)
        return convolve(b, ready, flip_kernel(b, w), sizes[2:], unit, groups, transposed=True)
    known = [s for s in (*sizes[2:], *grad.sizes[2:], *w.sizes[2:]) if isinstance(s, int)]
    if len(known) < 3 * n or any(d != 1 for d in window.dilation):
        raise UnsupportedError("the gradient of a strided convolution with symbolic sizes or dilation")
    result = b.fill(0, opmath(grad.dtype), sizes)
    for phase in itertools.product(*(range(s) for s in window.stride)):
        first = [(p + around) % s for p, around, s in zip(phase, window.padding, window.stride, strict=True)]
        counts = [-(-(known[i] - p) // window.stride[i]) for i, p in enumerate(phase)]
        kernel = [max(0, -(-(known[2 * n + i] - first[i]) // window.stride[i])) for i in range(n)]
        if 0 in kernel or 0 in counts:
            continue
        start = [(phase[i] + window.padding[i] - first[i]) // window.stride[i] for i in range(n)]
        low = [kernel[i] - 1 - start[i] for i in range(n)]
        high = [counts[i] + start[i] - known[n + i] for i in range(n)]
        ready = pad(b, grad, [0, 0, *low], [0, 0, *high], 0)
        taps = flip_kernel(b, w, first, window.stride)
        part = convolve(b, ready, taps, counts, unit, groups, transposed=True)
        result = insert_slice(b, part, result, [0, 0, *phase], part.sizes, [1, 1, *window.stride])
    return result


def _kernel_gradient(b: Builder, grad: Tensor, x: Tensor, w: Tensor, window: Window, groups: int) -> Tensor:
    """``out[o, c, k] = sum over n and positions p of grad[n, o, p] * x[n, c, p * stride + k * dilation]``."""
    n = x.rank - 2
    around = [0, 0, *window.padding]
    x = pad(b, x, around, around, 0)
    sizes: tuple[Size, ...] = w.sizes
    if groups > 1:
        grad, x = _split_channels(b, grad, 1, groups), _split_channels(b, x, 1, groups)
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
