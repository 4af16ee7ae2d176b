"""Batch norm with fixed statistics, compiled: one multiplication and one addition an element, exact as eager's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from exactness import assert_exact
from torch import nn

Compiler = Callable[..., Callable[..., Any]]


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(
    ("norm", "space"),
    [(nn.BatchNorm1d, ()), (nn.BatchNorm1d, (7,)), (nn.BatchNorm2d, (5, 3)), (nn.BatchNorm3d, (2, 3, 4))],
)
def test_fixed_statistics(
    norm: Callable[..., nn.Module], space: tuple[int, ...], affine: bool, compiled: Compiler
) -> None:
    """Means far from zero and small variances, where the formula decides the error; a NaN and an infinity too."""
    model = norm(6, affine=affine).eval()
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) * (0.01 if "var" in name else 10) + 0.001)
        fast = compiled(model, fullgraph=True)
        x = torch.randn(4, 6, *space) + 5
        assert_exact(model, (x,), fast, strides=True)
        x[0, 1] = float("nan")
        x[1, 2] = float("inf")
        torch.testing.assert_close(fast(x), model(x), equal_nan=True, rtol=1e-4, atol=1e-4)


def test_half_precision(compiled: Compiler) -> None:
    model = nn.BatchNorm2d(6).eval().to(torch.bfloat16)
    with torch.no_grad():
        assert_exact(model, (torch.randn(2, 6, 5, 3, dtype=torch.bfloat16),), compiled(model, fullgraph=True))


def test_gradients_with_fixed_statistics(compiled: Compiler) -> None:
    model = nn.BatchNorm2d(6).eval()
    x = torch.randn(2, 6, 5, 3, requires_grad=True)
    z = x.detach().clone().requires_grad_()
    torch.compile(model, backend="effc")(x).square().sum().backward()
    model(z).square().sum().backward()
    torch.testing.assert_close(x.grad, z.grad)
