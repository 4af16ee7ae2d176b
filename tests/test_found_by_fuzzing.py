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


_ZEROS = torch.zeros(32)


@pytest.mark.parametrize(
    "function",
    [
        torch.maximum,
        torch.minimum,
        torch.fmax,
        torch.fmin,
        torch.clamp_min,
        torch.clamp_max,
        lambda x, y: torch.clamp(x, y, y + 1),
        lambda x, y: torch.clamp(x, y - 1, y),
    ],
)
def test_of_zeros_of_both_signs_eagers_is_taken(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    """In whole vectors: in what is left over, eager itself takes the other."""
    torch._dynamo.reset()
    compiled = torch.compile(function, backend="effc")
    for x, y in ((_ZEROS, -_ZEROS), (-_ZEROS, _ZEROS)):
        assert torch.equal(compiled(x, y).signbit(), function(x, y).signbit())


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
def test_grid_sample_outside_the_image(rank: int, mode: str, padding: str) -> None:
    """Negative numbers and infinities are not multiplied by 0."""
    if rank == 3 and mode == "bicubic":
        pytest.skip("torch has none")
    torch._dynamo.reset()

    def graph(x: Tensor, grid: Tensor) -> Tensor:
        return F.grid_sample(x, grid, mode=mode, padding_mode=padding, align_corners=False)

    g = torch.Generator().manual_seed(5)
    x = -torch.rand(2, 3, *(5, 6, 4)[:rank], generator=g)
    grid = torch.rand(2, *(4, 3, 5)[:rank], rank, generator=g) * 4 - 2
    compiled = torch.compile(graph, backend="effc", options={"fallback": "error"})
    with torch.no_grad():
        assert_exact(graph, (x, grid), compiled)
        x[..., 0] = torch.inf
        torch.testing.assert_close(compiled(x, grid), graph(x, grid), equal_nan=True)


@pytest.mark.parametrize("function", [torch.floor_divide, torch.remainder, torch.fmod])
def test_integers_divided_by_zero(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    """The error is eager's."""
    torch._dynamo.reset()
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        function(torch.tensor([1, 2]), torch.tensor([3, 0]))
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        torch.compile(function, backend="effc")(torch.tensor([1, 2]), torch.tensor([3, 0]))


def test_one_tensor_concatenated_with_itself_has_eagers_strides() -> None:
    torch._dynamo.reset()

    def graph(x: Tensor) -> Tensor:
        y = x * 2
        return torch.cat([y, y], -2)

    x = torch.randn(16, 1, 5, generator=torch.Generator().manual_seed(6)).transpose(0, -1)
    assert_exact(graph, (x,), torch.compile(graph, backend="effc"), strides=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1, 3, 17, 768, 1031])
def test_equal_numbers_have_no_variance(size: int, dtype: torch.dtype) -> None:
    """Their rounded sum is not ``size`` times the number; a layer norm with a small ``eps`` showed it."""
    torch._dynamo.reset()

    def graph(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return x.var(-1, correction=0), x.std(0), F.layer_norm(x, x.shape[-1:], eps=1e-12)

    numbers = torch.randn(37, generator=torch.Generator().manual_seed(7), dtype=dtype)
    row = numbers.unsqueeze(1).expand(37, size).contiguous()
    compiled = torch.compile(graph, backend="effc", dynamic=False)
    with torch.no_grad():
        assert compiled(row)[0].count_nonzero() == 0
        assert compiled(row)[2].count_nonzero() == 0
        assert compiled(row.T[:, :1].expand(size, 37).contiguous())[1].count_nonzero() == (0 if size > 1 else 37)


@pytest.mark.parametrize("weight", [None, -1.0])
@pytest.mark.parametrize("size", [1, 5, 16])
def test_a_layer_norm_without_bias_has_no_negative_zero(size: int, weight: float | None) -> None:
    torch._dynamo.reset()

    def graph(x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], None if weight is None else x.new_full((size,), weight))

    x = torch.tensor([-0.0, 0.0, 1.0, -3.3]).unsqueeze(1).expand(4, size).contiguous()
    assert_exact(graph, (x,), torch.compile(graph, backend="effc"))
