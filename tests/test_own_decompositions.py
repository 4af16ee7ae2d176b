"""Ops that effc takes apart itself run in its kernels, exactly."""

from __future__ import annotations

import pytest
import torch
from exactness import assert_exact
from torch import Tensor


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
