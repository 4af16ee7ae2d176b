"""A number or a tensor of rank 0 beside 16-bit floats: rounded to their dtype first, or taken in float32, as eager does each."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from exactness import assert_exact
from torch import Tensor
from torch.nn import functional as F

Binary = Callable[[Tensor, float | Tensor], Tensor]

ROUNDED: dict[str, Binary] = {
    "eq": lambda x, s: x == s,
    "lt": lambda x, s: x < s,
    "ge": lambda x, s: s >= x,
    "remainder": lambda x, s: torch.remainder(x, s),
    "fmod": lambda x, s: torch.fmod(x, s),
    "atan2": lambda x, s: torch.atan2(x, torch.as_tensor(s)),
}
#: Eager's kernels keep what they read as a number in float32.
NUMBERS: dict[str, Binary] = {
    "add": lambda x, s: x + s,
    "rsub": lambda x, s: s - x,
    "alpha": lambda x, s: torch.add(x, x.flip(0), alpha=float(s)),
    "pow": lambda x, s: x.abs() ** s,
    "mul": lambda x, s: x * s,
    "div": lambda x, s: x / s,
    "floor_divide": lambda x, s: torch.floor_divide(x, s),
    "addcmul": lambda x, s: torch.addcmul(x, x.flip(0), x, value=float(s)),
    "lerp": lambda x, s: torch.lerp(x, x.flip(0), float(s)),
    "hardshrink": lambda x, s: F.hardshrink(x, float(s)),
    "leaky_relu": lambda x, s: F.leaky_relu(x, float(s)),
}


def values(dtype: torch.dtype) -> Tensor:
    """With the neighbours of 0.1, which 16-bit floats do not hold; whole vectors, as eager rounds otherwise in its remainder."""
    near = torch.tensor(0.1, dtype=dtype)
    bits = near.view(torch.int16) + torch.arange(-3, 4, dtype=torch.int16)
    return torch.cat([torch.randn(1017, generator=torch.Generator().manual_seed(1)).to(dtype), bits.view(dtype)])


def check(function: Binary, x: Tensor, scalar: float | Tensor) -> None:
    torch._dynamo.reset()
    expected = function(x, scalar)
    assert torch.equal(torch.compile(function, backend="effc", fullgraph=True)(x, scalar), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", sorted(ROUNDED | NUMBERS))
def test_numbers(name: str, dtype: torch.dtype) -> None:
    check((ROUNDED | NUMBERS)[name], values(dtype), 0.1)


@pytest.mark.parametrize("scalar", [torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", sorted(ROUNDED))
def test_tensors_of_rank_0(name: str, dtype: torch.dtype, scalar: torch.dtype) -> None:
    check(ROUNDED[name], values(dtype), torch.tensor(0.1, dtype=scalar))


def test_numbers_that_are_equal_and_not_the_same() -> None:
    """Zeros of either sign, integers and floats, in one graph."""

    def quotients(x: Tensor, n: Tensor) -> tuple[Tensor, ...]:
        return x / 0.0, x / -0.0, x / 0, n + True, n + 1, n + 1.0

    torch._dynamo.reset()
    x, n = torch.randn(19), torch.arange(19)
    found = torch.compile(quotients, backend="effc", fullgraph=True)(x, n)
    for result, expected in zip(found, quotients(x, n), strict=True):
        assert result.dtype == expected.dtype
        assert torch.equal(result, expected)


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_a_sum_with_a_product_is_rounded_once(scale: float) -> None:
    """``x + x * y`` where y is near -1: a rounded product would be off by many ulp of the sum."""
    torch._dynamo.reset()
    x = torch.randn(33, 13, generator=torch.Generator().manual_seed(2))
    y = torch.tensor(-0.98 / scale)

    def graph(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return torch.addcmul(x, x, y, value=scale), torch.add(x, x, alpha=-0.98)

    assert_exact(graph, (x, y), torch.compile(graph, backend="effc"))


def test_lerp_of_channels_last_with_a_lower_rank() -> None:
    torch._dynamo.reset()
    x = torch.randn(1, 8, 16, 8).to(memory_format=torch.channels_last)
    assert_exact(torch.lerp, (x, torch.randn(1, 1, 8), 0.3), torch.compile(torch.lerp, backend="effc"), strides=True)
    assert_exact(torch.lerp, (x, x + 1, torch.rand(16, 8)), torch.compile(torch.lerp, backend="effc"))
