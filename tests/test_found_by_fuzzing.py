"""Graphs that the fuzzer once found wrong, made small."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from exactness import assert_exact
from torch import Tensor
from torch.nn import functional as F

Graph = Callable[[Tensor], Tensor]


def rms_of_one_then_sum(x: Tensor) -> Tensor:
    return (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)).sum()


def softmax_of_one_then_norm(x: Tensor) -> Tensor:
    return F.layer_norm(torch.softmax(x.square(), 1), x.shape[-1:])


@pytest.mark.parametrize(
    ("graph", "shape"),
    [
        (lambda x: torch.cos(x).sum(0).sum(0), (1, 16)),
        (lambda x: torch.cos(x).sum(0).norm(), (1, 16)),
        (lambda x: (x.argmax(0) + 1).sum(), (1, 16)),
        (lambda x: x.amax(1).sum(-1), (2, 1, 8)),
        (rms_of_one_then_sum, (33, 1)),
        (softmax_of_one_then_norm, (2, 1, 8)),
    ],
)
def test_a_reduction_over_size_1_within_another(graph: Graph, shape: tuple[int, ...]) -> None:
    """It is no sum over the other's dimension."""
    torch._dynamo.reset()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(4))
    assert_exact(graph, (x,), torch.compile(graph, backend="effc"))


def test_a_sum_over_size_1_has_no_negative_zero() -> None:
    torch._dynamo.reset()

    def graph(x: Tensor) -> Tensor:
        return x.sum(0)

    assert_exact(graph, (torch.tensor([[-0.0, 0.0, 1.0]]),), torch.compile(graph, backend="effc"))


def test_a_convolution_with_symbolic_groups_goes_to_aten() -> None:
    torch._dynamo.reset()

    def graph(x: Tensor) -> Tensor:
        return F.conv1d(x, x[:1, :1].repeat(x.shape[1], 1, 1), padding=1, groups=x.shape[1])

    compiled = torch.compile(graph, backend="effc", dynamic=True)
    for channels in (8, 5):
        assert_exact(graph, (torch.randn(1, channels, 4),), compiled)


@pytest.mark.parametrize(
    "function",
    [
        torch.relu,
        torch.nn.functional.relu6,
        torch.nn.functional.hardtanh,
        lambda x: x.clamp(0, 3),
        lambda x: x.clamp(max=0.0),
    ],
)
def test_the_sign_of_zero_survives_a_bound_of_zero(function: Callable[[Tensor], Tensor]) -> None:
    x = torch.tensor([-0.0, 0.0, torch.nan, 1.0, -1.0, torch.inf, -torch.inf] * 5)
    expected = function(x)
    with torch.no_grad():
        found = torch.compile(function, backend="effc")(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    numbers = ~expected.isnan()
    assert torch.equal(found.signbit()[numbers], expected.signbit()[numbers])
