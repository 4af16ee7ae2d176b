"""Gradients of convolutions in effc's kernels, against float64 and held to eager's error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from exactness import assert_exact
from torch import Tensor
from torch.nn import functional as F

#: Sizes of input and weights, and options. Sizes are odd on purpose: primes, tails of vectors, borders of all widths.
CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "plain": ((3, 5, 7, 11), (6, 5, 3, 3), {"padding": 1}),
    "no padding": ((2, 17, 9, 8), (33, 17, 3, 3), {}),
    "wide padding": ((2, 3, 5, 6), (4, 3, 2, 3), {"padding": (1, 2)}),
    "one image": ((1, 16, 13, 13), (32, 16, 3, 3), {"padding": 1}),
    "one position": ((4, 7, 3, 3), (5, 7, 3, 3), {}),
    "one channel": ((2, 1, 28, 28), (24, 1, 3, 3), {"padding": 1}),
    "pointwise": ((2, 19, 5, 7), (23, 19, 1, 1), {}),
    "pointwise, strided": ((2, 16, 9, 8), (33, 16, 1, 1), {"stride": 2}),
    "strided": ((2, 16, 14, 13), (32, 16, 3, 3), {"stride": 2, "padding": 1}),
    "strided unevenly": ((2, 5, 13, 17), (7, 5, 3, 5), {"stride": (2, 3), "padding": (1, 2)}),
    "strided, even kernel": ((2, 4, 11, 10), (6, 4, 4, 2), {"stride": 2, "padding": 1}),
    "stride beyond the kernel": ((2, 4, 11, 13), (6, 4, 2, 1), {"stride": 3}),
    "large strided kernel": ((1, 3, 31, 29), (8, 3, 7, 7), {"stride": 2, "padding": 3}),
    "dilated": ((2, 6, 12, 11), (5, 6, 3, 3), {"dilation": (2, 3), "padding": 2}),
    "dilated and strided": ((2, 6, 12, 11), (5, 6, 3, 3), {"dilation": 2, "stride": 2}),
    "dilated and strided unevenly": (
        (2, 6, 17, 19),
        (5, 6, 3, 4),
        {"dilation": (3, 4), "stride": (2, 6), "padding": (1, 3)},
    ),
    "grouped": ((2, 12, 7, 9), (20, 3, 3, 3), {"groups": 4, "padding": 1}),
    "grouped, strided": ((2, 12, 8, 9), (8, 6, 3, 3), {"groups": 2, "padding": 1, "stride": 2}),
    "depthwise": ((2, 33, 9, 7), (33, 1, 3, 3), {"groups": 33, "padding": 1}),
    "depthwise, strided": ((2, 16, 9, 10), (16, 1, 3, 3), {"groups": 16, "padding": 1, "stride": 2}),
    "depthwise, several a channel": ((2, 5, 8, 9), (15, 1, 3, 3), {"groups": 5, "padding": 1}),
    "one dimension": ((3, 6, 23), (5, 6, 4), {"padding": 2, "stride": 2}),
    "three dimensions": ((1, 4, 6, 7, 5), (3, 4, 3, 2, 3), {"padding": 1, "stride": (1, 2, 1)}),
}
#: What effc leaves to ATen as it has no kernel for it.
LEFT: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "transposed": ((2, 6, 5, 7), (6, 4, 3, 3), {"stride": 2, "padding": 1, "output_padding": 1}),
    "transposed, grouped": ((2, 6, 5, 7), (6, 4, 3, 3), {"groups": 3}),
    "no images": ((0, 3, 5, 6), (4, 3, 3, 3), {"padding": 1}),
}
BIAS = {"transposed": 4, "transposed, grouped": 12}


def convolution(name: str, options: dict[str, Any]) -> Callable[..., Tensor]:
    def run(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        if "transposed" in name:
            return F.conv_transpose2d(x, w, b, **options)
        plain: Callable[..., Tensor] = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[x.dim()]
        return plain(x, w, b, **options)

    return run


def operands(
    name: str, x: tuple[int, ...], w: tuple[int, ...], dtype: torch.dtype = torch.float32, needed: str = "xwb"
) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    given = (torch.randn(x), torch.randn(w) / 4, torch.randn(BIAS.get(name, w[0])))
    x_, w_, b_ = (t.to(dtype).requires_grad_(n in needed) for t, n in zip(given, "xwb", strict=True))
    return x_, w_, b_


def gradients(function: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, ...]]:
    """Of the operands that require one, for a random gradient of the result."""

    def of(*given: Tensor) -> tuple[Tensor, ...]:
        out = function(*given)
        seed = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float32)
        return torch.autograd.grad(out, [t for t in given if t.requires_grad], seed.to(out.dtype))

    return of


def check(name: str, given: tuple[Tensor, ...], convolving: dict[str, Any], **compiling: Any) -> None:
    torch._dynamo.reset()
    function = convolution(name, convolving)
    fast = torch.compile(function, backend="effc", **compiling)
    assert_exact(gradients(function), given, gradients(fast), context=name)


@pytest.mark.parametrize("name", CASES)
def test_all_three(name: str) -> None:
    x, w, options = CASES[name]
    check(name, operands(name, x, w), options, options={"fallback": "error"})


@pytest.mark.parametrize("name", ["plain", *LEFT])
def test_as_users_run_them(name: str) -> None:
    x, w, options = (CASES | LEFT)[name]
    check(name, operands(name, x, w), options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["plain", "strided", "depthwise", "pointwise"])
def test_dtypes(name: str, dtype: torch.dtype) -> None:
    x, w, options = CASES[name]
    check(name, operands(name, x, w, dtype), options, options={"fallback": "error"})


@pytest.mark.parametrize("needed", ["x", "w", "b", "xw", "wb", "xb"])
@pytest.mark.parametrize("name", ["plain", "strided"])
def test_some_of_them(name: str, needed: str) -> None:
    x, w, options = CASES[name]
    check(name, operands(name, x, w, needed=needed), options)


@pytest.mark.parametrize("name", ["plain", "strided", "depthwise", "pointwise, strided"])
def test_a_batch_of_any_size(name: str) -> None:
    x, w, options = CASES[name]
    torch._dynamo.reset()
    function = convolution(name, options)
    fast = torch.compile(function, backend="effc", dynamic=True)
    for batch in (5, 3, 1, 17):
        assert_exact(gradients(function), operands(name, (batch, *x[1:]), w), gradients(fast), context=f"{batch}")


@pytest.mark.parametrize("name", ["plain", "strided", "depthwise"])
def test_channels_last(name: str) -> None:
    x, w, options = CASES[name]
    given = operands(name, x, w)
    placed = [t.detach().to(memory_format=torch.channels_last).requires_grad_() for t in given[:2]]
    check(name, (*placed, given[2]), options)


def test_sums_of_equal_signs() -> None:
    """Many positions: a weight's gradient is one long sum."""
    x, w = torch.rand(16, 8, 56, 56).requires_grad_(), torch.rand(8, 8, 3, 3).requires_grad_()
    check("plain", (x, w, torch.rand(8).requires_grad_()), {"padding": 1})
