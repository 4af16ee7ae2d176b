"""Ops that effc takes apart itself run in its kernels, exactly."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from exactness import assert_exact
from torch import Tensor
from torch.nn import functional as F


@pytest.mark.parametrize("p", [0.0, 1.0, 2.0, 3.5, float("inf")])
def test_distances(p: float) -> None:
    torch._dynamo.reset()
    g = torch.Generator().manual_seed(2)
    x, y = torch.randn(2, 7, 5, generator=g), torch.randn(2, 3, 5, generator=g)

    def graph(x: Tensor, y: Tensor) -> Tensor:
        return torch.cdist(x, y, p=p)

    with torch.no_grad():
        assert_exact(graph, (x, y), torch.compile(graph, backend="effc", options={"fallback": "error"}))


def test_ldexp() -> None:
    torch._dynamo.reset()
    x, y = torch.randn(37, generator=torch.Generator().manual_seed(3)), torch.arange(37) - 18
    compiled = torch.compile(torch.ldexp, backend="effc", options={"fallback": "error"})
    assert_exact(torch.ldexp, (x, y), compiled)


@pytest.mark.parametrize("function", [F.elu, F.selu, lambda x: F.celu(x, 0.7), F.hardswish, F.relu6, F.hardtanh])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_activations(function: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    """Also where the argument is not finite; whole vectors, as eager's remainder passes a gradient on where it is NaN."""
    torch._dynamo.reset()
    x = torch.randn(192, generator=torch.Generator().manual_seed(4))
    x[:7] = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 3.0, -3.0])

    def gradient(x: Tensor) -> Tensor:
        y = x.detach().requires_grad_()
        function(y).backward(torch.linspace(-1, 1, 192, dtype=dtype))
        assert y.grad is not None
        return y.grad

    def compiled(x: Tensor) -> Tensor:
        y = x.detach().requires_grad_()
        torch.compile(function, backend="effc")(y).backward(torch.linspace(-1, 1, 192, dtype=dtype))
        assert y.grad is not None
        return y.grad

    ours, eager = compiled(x.to(dtype)), gradient(x.to(dtype))
    torch.testing.assert_close(ours, eager, equal_nan=True, rtol=4 * torch.finfo(dtype).eps, atol=1e-6)
