"""Long sums: rounding errors stay within twice eager's however many terms are added."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

EPS = torch.finfo(torch.float32).eps


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()
    torch.manual_seed(3)


def relative(result: Tensor, reference: Tensor) -> float:
    return float((result.double() - reference).norm() / reference.norm())


def bound(eager: Tensor, reference: Tensor) -> float:
    return max(2 * relative(eager, reference), 4 * EPS)


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("rows", [2, 37])
def test_product_of_any_placement(rows: int, dynamic: bool, positive: bool) -> None:
    a, b = torch.randn(rows, 4099), torch.randn(4099, 50)
    if positive:
        a, b = a.abs(), b.abs()
    true = a.double() @ b.double()
    for right in (b, b.t().contiguous().t()):
        compiled = torch.compile(lambda x, y: x @ y, backend="effc", dynamic=dynamic)
        assert relative(compiled(a, right), true) <= bound(a @ right, true)


@pytest.mark.parametrize("features", [385, 2048, 4099])
def test_packed_weight(features: int) -> None:
    layer, x = nn.Linear(features, 40), torch.randn(9, features)
    with torch.no_grad():
        true = F.linear(x.double(), layer.weight.double(), layer.bias.double())
        assert relative(torch.compile(layer, backend="effc")(x), true) <= bound(layer(x), true)


@pytest.mark.parametrize(("channels", "size"), [(256, (5, 4, 3)), (200, (6, 7)), (600, (40,))])
def test_convolution(channels: int, size: tuple[int, ...]) -> None:
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(size) - 1]
    layer = kind(channels, 24, 3, padding=1)
    x = torch.randn(1, channels, *size)
    with torch.no_grad():
        eager = layer(x)
        ours = torch.compile(layer, backend="effc")(x)
        true = layer.double()(x.double())
    assert relative(ours, true) <= bound(eager, true)


@pytest.mark.parametrize("queries", [1, 40])
def test_attention_over_many_keys(queries: int) -> None:
    q, k, v = torch.randn(1, 2, queries, 64), torch.randn(1, 2, 3001, 64), torch.rand(1, 2, 3001, 64)
    true = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    ours = torch.compile(F.scaled_dot_product_attention, backend="effc")(q, k, v)
    assert relative(ours, true) <= bound(F.scaled_dot_product_attention(q, k, v), true)


@pytest.mark.parametrize("name", ["sum", "mean", "var", "norm", "logsumexp"])
@pytest.mark.parametrize("dim", [0, 1])
def test_reductions(name: str, dim: int) -> None:
    functions = {"norm": torch.linalg.vector_norm}
    function = functions.get(name) or getattr(torch, name)
    x = torch.rand(7, 100_003) if dim else torch.rand(100_003, 7)
    true, eager = function(x.double(), dim=dim), function(x, dim=dim)
    ours = torch.compile(lambda t: function(t, dim=dim), backend="effc")(x)
    assert relative(ours, true) <= bound(eager, true)


@pytest.mark.parametrize("seed", range(3))
def test_equal_terms(seed: int) -> None:
    """A tensor convolved with itself, expanded along its channels: 64 terms of each value, whose roundings go one way."""
    x = torch.rand(64, 1, 4, generator=torch.Generator().manual_seed(seed)).expand(64, 64, 4)
    true = F.conv1d(x.double(), x.double(), stride=2, padding=1)
    ours = torch.compile(lambda x: F.conv1d(x, x, stride=2, padding=1), backend="effc")(x)
    assert relative(ours, true) <= bound(F.conv1d(x, x, stride=2, padding=1), true)


@pytest.mark.parametrize("offset", [0.0, 1.0, 100.0])
@pytest.mark.parametrize("shape", [(5, 5, 5), (30_000,)])
def test_the_mean_beside_a_variance_is_as_good_as_alone(shape: tuple[int, ...], offset: float) -> None:
    """Distances from a rounded mean are rounded all one way where the numbers are larger than it."""

    def both(x: Tensor) -> Tensor:
        return torch.stack(torch.var_mean(x))[1]

    compiled = torch.compile(both, backend="effc", dynamic=False)
    errors = [0.0, 0.0]
    for seed in range(40):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 5 + offset
        for i, mean in enumerate((x.mean(), compiled(x))):
            errors[i] += float((mean - x.double().mean()) ** 2)
    assert errors[1] <= 2 * errors[0]


@pytest.mark.parametrize("shape", [(64, 13), (60, 16), (128, 3), (100, 1)])
def test_sums_that_few_lanes_share(shape: tuple[int, ...]) -> None:
    """The dimensions of an expanded tensor do not merge to one long row, nor do columns."""
    for function in (lambda x, y: (torch.maximum(x, y) + 2 * x).sum(), lambda x, y: torch.maximum(x, y).sum(0)):
        compiled = torch.compile(function, backend="effc", dynamic=False)
        errors = [0.0, 0.0]
        for seed in range(60):
            g = torch.Generator().manual_seed(seed)
            x, y = torch.randn(1, shape[1], generator=g).expand(shape), torch.randn(shape, generator=g)
            for i, total in enumerate((function(x, y), compiled(x, y))):
                errors[i] += float((total - function(x.double(), y.double())).square().sum())
        assert errors[1] <= 4 * errors[0]
