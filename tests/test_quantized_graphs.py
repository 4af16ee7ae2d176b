"""Graphs with the ``quantized_decomposed`` ops that PyTorch's export of quantized models writes: wholly compiled, as eager."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.ao.quantization.fx._decomposed  # defines the ops
from exactness import assert_exact
from torch import Tensor, nn
from torch.nn import functional as F

Q = torch.ops.quantized_decomposed
BOTH = [(torch.int8, -128, 127), (torch.uint8, 0, 255), (torch.int8, -8, 7)]


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()
    torch.manual_seed(5)


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    result: Callable[..., Any] = torch.compile(function, backend="effc", options={"fallback": "error"}, **options)
    return result


def special(*shape: int) -> Tensor:
    """With ties, numbers beyond the range, and what eager's conversion makes of infinities."""
    x = torch.randn(shape) * 3
    x.view(-1)[:6] = torch.tensor([0.025, -0.075, 1e30, -1e30, torch.inf, -torch.inf])[: x.numel()]
    return x


@pytest.mark.parametrize(("dtype", "low", "high"), BOTH)
@pytest.mark.parametrize("zero", [0, 5, -3])
@pytest.mark.parametrize("source", [torch.float32, torch.bfloat16])
def test_per_tensor(source: torch.dtype, zero: int, dtype: torch.dtype, low: int, high: int) -> None:
    zero = abs(zero) if dtype == torch.uint8 else zero

    def graph(x: Tensor, scale: Tensor, point: Tensor) -> tuple[Tensor, ...]:
        fixed = Q.quantize_per_tensor(x, 0.05, zero, low, high, dtype)
        given = Q.quantize_per_tensor.tensor(x, scale, point, low, high, dtype)
        return (
            fixed,
            given,
            Q.dequantize_per_tensor(fixed, 0.05, zero, low, high, dtype),
            Q.dequantize_per_tensor.tensor(given, scale, point, low, high, dtype),
        )

    x = special(7, 33).to(source)
    inputs = (x, torch.tensor(0.031), torch.tensor(zero))
    for ours, eager in zip(compiled(graph)(*inputs), graph(*inputs), strict=True):
        assert ours.dtype == eager.dtype
        assert torch.equal(ours, eager)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_per_channel(axis: int) -> None:
    x = special(5, 17, 3)
    scales, zeros = torch.rand(x.shape[axis]) * 0.1 + 1e-3, torch.randint(-4, 5, (x.shape[axis],))

    def graph(x: Tensor, scales: Tensor, zeros: Tensor) -> tuple[Tensor, Tensor]:
        q = Q.quantize_per_channel(x, scales, zeros, axis, -127, 127, torch.int8)
        return q, Q.dequantize_per_channel(q, scales, zeros, axis, -127, 127, torch.int8)

    for ours, eager in zip(compiled(graph)(x, scales, zeros), graph(x, scales, zeros), strict=True):
        assert torch.equal(ours, eager)


@pytest.mark.parametrize("offset", [0.0, 5.0, -5.0])
@pytest.mark.parametrize(("dtype", "low", "high"), BOTH)
def test_scales_from_the_data(dtype: torch.dtype, low: int, high: int, offset: float) -> None:
    def graph(x: Tensor) -> tuple[Tensor, ...]:
        scale, zero = Q.choose_qparams.tensor(x, low, high, 1e-6, dtype)
        even, center = Q.choose_qparams_symmetric.tensor(x, low, high, 1e-6, dtype)
        return scale, zero, Q.quantize_per_tensor.tensor(x, scale, zero, low, high, dtype), even, center

    for x in (torch.randn(9, 40) + offset, torch.zeros(3)):
        for ours, eager in zip(compiled(graph)(x), graph(x), strict=True):
            assert ours.dtype == eager.dtype
            assert torch.equal(ours, eager)


def test_per_token() -> None:
    """A linear layer as dynamic quantization writes it."""
    weight, scales = torch.randint(-127, 128, (24, 40), dtype=torch.int8), torch.rand(24) * 0.01 + 1e-4

    def graph(x: Tensor, weight: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
        by_token, zeros = Q.choose_qparams_per_token_asymmetric(x, torch.int8)
        t = Q.quantize_per_token(x, by_token, zeros, -128, 127, torch.int8)
        w = Q.dequantize_per_channel(weight, scales, torch.zeros(24, dtype=torch.int64), 0, -127, 127, torch.int8)
        return t, F.linear(Q.dequantize_per_token(t, by_token, zeros, -128, 127, torch.int8, torch.float32), w)

    x = torch.randn(9, 40)
    ours, eager = compiled(graph)(x, weight, scales), graph(x, weight, scales)
    assert torch.equal(ours[0], eager[0])
    torch.testing.assert_close(ours[1], eager[1])


@pytest.mark.parametrize("group", [8, 16])
def test_groups_of_weights(group: int) -> None:
    codes = torch.randint(-8, 8, (12, 32), dtype=torch.int8)
    scales, zeros = torch.rand(12, 32 // group) * 0.1 + 1e-3, torch.zeros(12, 32 // group)

    def graph(x: Tensor, codes: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
        w = Q.dequantize_per_channel_group(codes, scales, zeros, -8, 7, torch.int8, group, torch.float32)
        return F.linear(x, w)

    assert_exact(graph, (torch.randn(3, 32), codes, scales, zeros), compiled(graph))


class Block(nn.Module):
    """A residual block with static activations and weights by channel, as an exported model holds them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randint(-127, 128, (channels, channels, 3, 3), dtype=torch.int8))
        self.register_buffer("scales", torch.rand(channels) * 0.01 + 1e-4)
        self.register_buffer("zeros", torch.zeros(channels, dtype=torch.int64))
        self.bias = nn.Parameter(torch.randn(channels))

    def forward(self, x: Tensor) -> Tensor:
        x = self.observed(x, 0.04, 2)
        weight = Q.dequantize_per_channel(self.weight, self.scales, self.zeros, 0, -127, 127, torch.int8)
        y = self.observed(F.relu(F.conv2d(x, weight, self.bias, padding=1)), 0.1, -128)
        return self.observed(x + F.max_pool2d(y, 3, 1, 1), 0.11, -10)

    def observed(self, x: Tensor, scale: float, zero: int) -> Tensor:
        q = Q.quantize_per_tensor(x, scale, zero, -128, 127, torch.int8)
        result: Tensor = Q.dequantize_per_tensor(q, scale, zero, -128, 127, torch.int8)
        return result


@pytest.mark.parametrize("dynamic", [False, True])
def test_residual_block(dynamic: bool) -> None:
    """A result may lie one step away where the convolution's rounding decides a tie, hardly anywhere."""
    block = Block(13)
    fast = compiled(block, dynamic=dynamic)
    with torch.no_grad():
        for batch in (1, 3):
            x = torch.randn(batch, 13, 9, 11)
            steps = (fast(x) - block(x)).abs() / 0.11
            assert steps.max() <= 1.01
            assert (steps > 0.5).float().mean() < 1e-3
