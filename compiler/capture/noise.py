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
    "_scaled_dot_product_flash_attention_for_cpu": 0, "_scaled_dot_product_flash_attention": 0,
    "_scaled_dot_product_efficient_attention": 0, "_scaled_dot_product_cudnn_attention": 0,
}  # fmt: skip


def moved(tensor: Tensor, dtype: torch.dtype, noise: torch.Generator) -> Tensor:
    """Float64 of ``tensor``, each element moved by a random +-1 eps of ``dtype``."""
    sign = torch.randint(0, 2, tensor.shape, generator=noise, device="cpu").double().to(tensor.device) * 2 - 1
    return tensor.double() * (1 + sign * torch.finfo(dtype).eps)


def sum_eps(dtype: torch.dtype) -> float:
    """The precision in which sums for a result of ``dtype`` are taken: 16-bit operands are summed in float32."""
    return torch.finfo(torch.promote_types(dtype, torch.float32)).eps


def moved_terms(terms: Tensor, count: int, eps: float, noise: torch.Generator) -> Tensor:
    """Terms (or one of the factors of each) of sums of ``count``, for the part of the sums' errors that cancellation magnifies."""
    return _scattered(terms, 2 * math.sqrt(count / 18) * eps, noise)


def moved_sum(result: Tensor, count: int, eps: float, noise: torch.Generator) -> Tensor:
    """Sums of ``count`` terms, for the part of their errors that is in proportion to them."""
    return _scattered(result, math.sqrt(count) / 3 * eps, noise)


def _scattered(tensor: Tensor, deviation: float, noise: torch.Generator) -> Tensor:
    moves = torch.randn(tensor.shape, generator=noise, dtype=torch.float64, device="cpu")
    return tensor * (1 + deviation * moves.to(tensor.device))


def rounded(
    node: Node, target: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], noise: torch.Generator
) -> Any:
    """What ``target``, the op of ``node``, gives for float64 operands, with the errors of its dtype in the graph."""
    name = getattr(getattr(node.target, "overloadpacket", node.target), "__name__", "")
    if is_view(node) or name == "getitem" or name in _EXACT:
        return target(*args, **kwargs)
    meant = node.meta["val"]
    dtypes = [m.dtype for m in tree_leaves(meant) if isinstance(m, Tensor) and m.is_floating_point()]
    return _noisy(
        summed(name, target, args, kwargs, sum_eps(dtypes[0]), noise) if dtypes else target(*args, **kwargs),
        meant,
        noise,
    )


def summed(
    name: str,
    target: Callable[..., Any],
    args: Sequence[Any],
    kwargs: dict[str, Any],
    eps: float,
    noise: torch.Generator,
) -> Any:
    """What ``target``, the op called ``name``, gives for float64 operands, with the errors of its sums; other ops have none.

    ``eps``: the precision of the sums.
    """
    if name == "convolution_backward":
        return _convolution_backward(target, args, kwargs, eps, noise)
    result = target(*args, **kwargs) if name in _SUMS else None
    which, count = _terms(name, args, result)
    if count > 1:
        result = target(*(moved_terms(a, count, eps, noise) if i == which else a for i, a in enumerate(args)), **kwargs)
        return _moved_sums(result, count, eps, noise)
    return target(*args, **kwargs) if result is None else result


def _terms(name: str, args: Sequence[Any], result: Any) -> tuple[int, int]:
    """The operand that holds terms, or a factor of each, and how many each element of the result sums."""
    if name in _SUMS:
        return 0, args[0].numel() // max(tree_leaves(result)[0].numel(), 1)
    if name in _SCANS:
        return 0, max(args[0].shape, default=1)
    if name in _PRODUCTS:
        which = _PRODUCTS[name]
        return which, args[which].shape[-1] * (args[which].shape[0] if name == "addbmm" else 1)
    if name == "convolution":
        transposed, groups = args[6], args[8]
        return 0, args[1].numel() // max(args[1].shape[1] * groups if transposed else args[1].shape[0], 1)
    return 0, 1


def _moved_sums(result: Any, count: int, eps: float, noise: torch.Generator) -> Any:
    """Floating results of sums, each moved."""
    if isinstance(result, (tuple, list)):
        return [_moved_sums(v, count, eps, noise) for v in result]
    floating = isinstance(result, Tensor) and result.is_floating_point()
    return moved_sum(result, count, eps, noise) if floating else result


def _convolution_backward(
    target: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], eps: float, noise: torch.Generator
) -> list[Any]:
    """The gradients of image, and of weight and bias: sums of different lengths."""
    gradient, image, weight, *rest, mask = args
    inner, outer = weight.numel() // max(image.shape[1], 1), gradient.numel() // max(gradient.shape[1], 1)

    def moved_by(count: int, taken: list[bool]) -> Sequence[Any]:
        found = target(moved_terms(gradient, count, eps, noise), image, weight, *rest, taken, **kwargs)
        moved_found: Sequence[Any] = _moved_sums(found, count, eps, noise)
        return moved_found

    return [moved_by(inner, [mask[0], False, False])[0], *moved_by(outer, [False, *mask[1:]])[1:]]


def _noisy(result: Any, meant: Any, noise: torch.Generator) -> Any:
    """What an op of float64 gave, each floating tensor moved."""
    if isinstance(result, (tuple, list)):
        return [_noisy(v, m, noise) for v, m in zip(result, meant, strict=True)]
    if not isinstance(result, Tensor) or not result.is_floating_point():
        return result
    return moved(result, meant.dtype, noise)
