"""Rounding errors at random: ops in float64 whose every rounding falls out by chance (Monte Carlo arithmetic: Parker, 1997).

By how much a result then moves is by how much a right kernel's may be off: also a sum that is 0 by algebra, as the gradient of
a bias before a batch norm, has rounding errors, which its inputs alone do not show.

A sum of n terms rounds n partial sums s_k, independently to a first approximation (Higham and Mary, SIAM J. Sci. Comput. 41(5),
2019): its error has variance u^2 / 3 * sum(s_k^2). The mean of s_k^2 over orders of the terms, with their sum r and the sum of
their squares q, is q k/n (1 - k/n) + r^2 (k/n)^2, so the variance is u^2 / 3 * n (q / 6 + r^2 / 3): the first part is had by
moving the terms, the second by moving the sum. Noise has twice the deviation of such errors (eps for u), as a result moved by
+-1 eps has more than that of one rounding; and the first part twice that, since in the order that a kernel has, the partial sums
may be several times their mean (the tails of an integral of a squared Brownian bridge are exponential).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from effc.compiler.capture.partition import is_view

#: Ops (by name, all overloads) whose results are elements of their operands, or exact in any precision.
_EXACT = frozenset({
    "abs", "alias", "amax", "amin", "arange", "argmax", "argmin", "bitwise_and", "bitwise_not", "bitwise_or", "bitwise_xor",
    "cat", "ceil", "clamp", "clamp_max", "clamp_min", "clone", "constant_pad_nd", "copy", "copy_", "copysign", "cummax",
    "cummin", "diagonal_scatter", "empty", "expand", "fill", "flip", "floor", "fmax", "fmin", "full", "full_like", "gather",
    "index", "index_put", "index_select", "isinf", "isnan", "iota", "lift_fresh_copy", "logical_not", "masked_fill", "max",
    "max_pool2d_with_indices", "max_pool3d_with_indices", "maximum", "min", "minimum", "neg", "ones", "ones_like",
    "pixel_shuffle", "relu", "repeat", "roll", "round", "scalar_tensor", "scatter", "select_scatter", "sign",
    "slice_scatter", "sort", "threshold_backward", "topk", "tril", "triu", "trunc", "where", "zeros", "zeros_like",
})  # fmt: skip
#: Sums over an operand's dims; the operand is the first.
_SUMS = frozenset({
    "mean", "prod", "std", "sum", "var", "var_mean", "avg_pool2d", "avg_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d",
})  # fmt: skip
_SCANS = frozenset({"cumsum", "cumprod", "logcumsumexp"})
#: Matrix products by the operand whose last dim is summed.
_PRODUCTS = {
    "mm": 0, "bmm": 0, "mv": 0, "dot": 0, "vdot": 0, "addmm": 1, "baddbmm": 1, "addmv": 1, "addbmm": 1,
    "_scaled_dot_product_flash_attention_for_cpu": 0,
}  # fmt: skip


def moved(tensor: Tensor, dtype: torch.dtype, noise: torch.Generator) -> Tensor:
    """Float64 of ``tensor``, each element moved by a random +-1 eps of ``dtype``."""
    sign = torch.randint(0, 2, tensor.shape, generator=noise).double() * 2 - 1
    return tensor.double() * (1 + sign * torch.finfo(dtype).eps)


def moved_terms(terms: Tensor, count: int, dtype: torch.dtype, noise: torch.Generator) -> Tensor:
    """Terms (or one of the factors of each) of sums of ``count``, for the part of the sums' errors that cancellation magnifies."""
    return _scattered(terms, 2 * math.sqrt(count / 18), dtype, noise)


def moved_sum(result: Tensor, count: int, dtype: torch.dtype, noise: torch.Generator) -> Tensor:
    """Sums of ``count`` terms, for the part of their errors that is in proportion to them."""
    return _scattered(result, math.sqrt(count) / 3, dtype, noise)


def _scattered(tensor: Tensor, amount: float, dtype: torch.dtype, noise: torch.Generator) -> Tensor:
    """16-bit operands are summed in float32."""
    eps = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    return tensor * (1 + amount * eps * torch.randn(tensor.shape, generator=noise, dtype=torch.float64))


def rounded(
    node: Node, target: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], noise: torch.Generator
) -> Any:
    """What ``target``, the op of ``node``, gives for float64 operands, with the errors of its dtype in the graph."""
    name = getattr(getattr(node.target, "overloadpacket", node.target), "__name__", "")
    if is_view(node) or name == "getitem" or name in _EXACT:
        return target(*args, **kwargs)
    meant = node.meta["val"]
    if name == "convolution_backward":
        return _convolution_backward(meant, target, args, kwargs, noise)
    result = None
    if name in _SUMS:
        result = target(*args, **kwargs)
        which, count = 0, args[0].numel() // max(tree_leaves(result)[0].numel(), 1)
    elif name in _SCANS:
        which, count = 0, max(args[0].shape, default=1)
    elif name in _PRODUCTS:
        which = _PRODUCTS[name]
        count = args[which].shape[-1] * (args[which].shape[0] if name == "addbmm" else 1)
    elif name == "convolution":
        transposed, groups = args[6], args[8]
        which, count = 0, args[1].numel() // max(args[1].shape[1] * groups if transposed else args[1].shape[0], 1)
    else:
        which, count = 0, 1
    dtype = next((m.dtype for m in tree_leaves(meant) if isinstance(m, Tensor)), torch.bool)
    if count > 1 and dtype.is_floating_point:
        args = [moved_terms(a, count, dtype, noise) if i == which else a for i, a in enumerate(args)]
        result = target(*args, **kwargs)
    return _noisy(target(*args, **kwargs) if result is None else result, meant, count, noise)


def _convolution_backward(
    meant: Sequence[Any],
    target: Callable[..., Any],
    args: Sequence[Any],
    kwargs: dict[str, Any],
    noise: torch.Generator,
) -> list[Any]:
    """The gradients of image, and of weight and bias: sums of different lengths."""
    gradient, image, weight, *rest, mask = args
    inner, outer = weight.numel() // max(image.shape[1], 1), gradient.numel() // max(gradient.shape[1], 1)
    dtype = next(m.dtype for m in meant if m is not None)

    def moved_by(count: int, taken: list[bool]) -> Sequence[Any]:
        found: Sequence[Any] = target(moved_terms(gradient, count, dtype, noise), image, weight, *rest, taken, **kwargs)
        return [_noisy(v, m, count, noise) for v, m in zip(found, meant, strict=True)]

    return [moved_by(inner, [mask[0], False, False])[0], *moved_by(outer, [False, *mask[1:]])[1:]]


def _noisy(result: Any, meant: Any, count: int, noise: torch.Generator) -> Any:
    """What an op of float64 gave, each floating tensor moved."""
    if isinstance(result, (tuple, list)):
        return [_noisy(v, m, count, noise) for v, m in zip(result, meant, strict=True)]
    if not isinstance(result, Tensor) or not result.is_floating_point():
        return result
    if count > 1:
        result = moved_sum(result, count, meant.dtype, noise)
    return moved(result, meant.dtype, noise)
