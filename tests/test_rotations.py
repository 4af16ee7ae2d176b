"""Concatenations of halves of one tensor, as rotary embeddings have them, and pointwise operations of two producers: exact."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from exactness import assert_exact
from torch import Tensor, nn


def halves(x: Tensor, axis: int = -1) -> Tensor:
    first, second = x.chunk(2, axis)
    return torch.cat((-second, first), axis)


class Rotary(nn.Module):
    """Query and key of one linear layer, rotated; ``heads`` of 64 channels each."""

    def __init__(self, heads: int = 3) -> None:
        super().__init__()
        self.heads = heads
        self.linear = nn.Linear(48, 2 * heads * 64, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
        parts = self.linear(x).view(*x.shape[:2], 2 * self.heads, 64).transpose(1, 2).chunk(2, 1)
        return tuple(part * cos + halves(part) * sin for part in parts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("batch", "length"), [(1, 1), (2, 5), (1, 17)])
@pytest.mark.parametrize("dynamic", [False, True])
def test_rotary_embeddings(batch: int, length: int, dtype: torch.dtype, dynamic: bool) -> None:
    model = Rotary().eval().to(dtype)
    x, cos, sin = (torch.randn(*shape, dtype=dtype) for shape in ((batch, length, 48), (length, 64), (length, 64)))
    with torch.no_grad():
        assert_exact(model, (x, cos, sin), torch.compile(model, backend="effc", dynamic=dynamic))


def also_read_as_it_is(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    z = halves(x) * y
    return z + x, z


CASES: dict[str, Callable[[Tensor, Tensor], Tensor | tuple[Tensor, ...]]] = {
    "unequal parts": lambda x, y: torch.cat([x[:, 16:] * 2, x[:, :16].exp()], 1) * y + x.sin() * y,
    "rows": lambda x, y: halves(x, 0) * y + x,
    "a broadcast": lambda x, y: (halves(x) + y.relu()).tanh() * y[:, :1],
    "a small part": lambda x, y: torch.cat([x[:, 8:], x[:, :8]], 1) * y,
    "the same twice": lambda x, y: torch.cat([x, x], 1).sin() * torch.cat([y, y], 1),
    "two of them": lambda x, y: torch.cat([x[:, 40:], x[:, :40]], 1) * y + halves(y) * x,
    "summed": lambda x, y: (halves(x) * y).sum(1),
    "a softmax": lambda x, y: torch.softmax(halves(x) * y + x, -1),
    "also read as it is": also_read_as_it_is,
    "two producers, one read again": lambda x, y: (x.exp() * y.tanh(), y.tanh().sum(0)),
    "two producers of other shapes": lambda x, y: x.exp() * y[:, :1].tanh() + y[0].sin(),
    "transposed": lambda x, y: x.t().exp() * y.tanh(),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "offset"])
def test_other_shapes(case: str, layout: str) -> None:
    x, y = torch.randn(64, 64), torch.randn(64, 64)
    if layout == "transposed":
        x = x.t()
    elif layout == "offset":
        x = torch.randn(70, 70)[3:67, 5:69]
    with torch.no_grad():
        assert_exact(CASES[case], (x, y), torch.compile(CASES[case], backend="effc"))
