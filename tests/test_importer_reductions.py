"""Reductions, moments, arg-reductions and scans against eager through the evaluator."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import importer_harness
import pytest
import torch
import torch.nn.functional as F
from importer_harness import compile_and_run
from torch import Tensor

agrees = partial(importer_harness.agrees, tolerance=3e-6)
X = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(1))
DIMS = [None, 0, -1, (0, 2), (0, 1, 2)]


@pytest.mark.parametrize("keepdim", [False, True])
@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize(
    "function", [torch.sum, torch.mean, torch.amax, torch.amin, torch.var, torch.std, torch.logsumexp]
)
def test_over_dimensions(function: Callable[..., Tensor], dim: int | tuple[int, ...] | None, keepdim: bool) -> None:
    if dim is None and function in (torch.amax, torch.amin, torch.logsumexp):
        dim = (0, 1, 2)
    agrees(lambda x: function(x, dim=dim, keepdim=keepdim), X)


@pytest.mark.parametrize("function", [torch.sum, torch.mean, torch.amax, torch.var])
def test_with_symbolic_sizes(function: Callable[..., Tensor]) -> None:
    agrees(lambda x: function(x, dim=(0, 2)), X, dynamic=True)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int8, torch.uint8, torch.bool, torch.int64])
def test_of_integers(dtype: torch.dtype) -> None:
    x = torch.arange(24).reshape(4, 6).remainder(5).to(dtype)
    for function in (
        lambda a: a.sum(),
        lambda a: a.sum(1),
        lambda a: a.prod(0),
        lambda a: a.any(1),
        lambda a: a.all(0),
    ):
        agrees(function, x)
    agrees(lambda a: a.sum(0, dtype=torch.float32), x)
    if dtype != torch.bool:
        agrees(lambda a: a.amax(1), x)
        agrees(lambda a: a.amin(0), x)
        agrees(lambda a: a.argmax(1), x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_floats_accumulate_in_float32(dtype: torch.dtype) -> None:
    x = torch.rand(4, 1000).to(dtype)
    functions: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda a: a.sum(1),
        lambda a: a.mean(1),
        lambda a: a.var(1),
        lambda a: a.amax(1),
    )
    for function in functions:
        found, _ = compile_and_run(function, [x])
        exact = function(x.double()).to(dtype)
        assert found.dtype == dtype
        torch.testing.assert_close(found, exact, rtol=float(torch.finfo(dtype).eps), atol=0)


def test_of_nothing() -> None:
    empty = torch.zeros(3, 0)
    for function in (lambda a: a.sum(1), lambda a: a.mean(1), lambda a: a.prod(1), lambda a: a.any(1), lambda a: a.all(1),
                     lambda a: a.var(1), lambda a: a.sum(0), lambda a: a.sum()):  # fmt: skip
        agrees(function, empty)


def test_of_scalars_and_single_elements() -> None:
    for x in (torch.tensor(2.5), torch.tensor([2.5])):
        for function in (torch.sum, torch.mean, torch.amax, torch.argmax, torch.prod, lambda a: a.cumsum(0),
                         lambda a: a.max(0)[0], lambda a: a.max(0)[1], lambda a: torch.var(a, correction=0)):  # fmt: skip
            agrees(lambda a, f=function: f(a), x)


@pytest.mark.parametrize("correction", [0, 1, 2.5, 100])
def test_variance_corrections(correction: float) -> None:
    agrees(lambda x: torch.var_mean(x, 1, correction=correction)[0], X)
    agrees(lambda x: torch.var_mean(x, 1, correction=correction)[1], X)


def test_extrema_propagate_nan_and_the_first_position_wins() -> None:
    x = torch.tensor([[1.0, 3.0, 3.0], [math.nan, 5.0, math.nan], [-math.inf, -math.inf, -math.inf]])
    for function in (lambda a: a.amax(1), lambda a: a.amin(0), lambda a: a.argmax(1), lambda a: a.argmin(1),
                     lambda a: a.max(1)[0], lambda a: a.max(1)[1], lambda a: a.min(0)[1], lambda a: a.argmax(),
                     lambda a: a.max(), lambda a: a.aminmax()[0], lambda a: a.argmax(1, keepdim=True)):  # fmt: skip
        agrees(function, x)


@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("function", [torch.cumsum, torch.cumprod, torch.logcumsumexp])
def test_scans(function: Callable[..., Tensor], dim: int | tuple[int, ...] | None) -> None:
    agrees(lambda x: function(x, dim), X, tolerance=1e-5)


def test_scans_of_integers_and_extrema() -> None:
    x = torch.tensor([[1, 3, 3, 2], [0, -1, -1, 5]])
    agrees(lambda a: a.cumsum(1), x)
    agrees(lambda a: a.bool().cumsum(1), x)
    agrees(lambda a: a.cummax(1)[0], x)
    agrees(lambda a: a.cummax(1)[1], x)
    agrees(lambda a: a.cummin(0)[1], x)
    agrees(lambda a: a.cumsum(0, dtype=torch.float32), x)


@pytest.mark.parametrize("dynamic", [False, True])
def test_norms_and_softmax(dynamic: bool) -> None:
    x = torch.randn(2, 6, 5, 4)
    w, b = torch.randn(4), torch.randn(4)
    agrees(lambda x, w, b: F.layer_norm(x, (4,), w, b), x, w, b, dynamic=dynamic)
    agrees(lambda x, w: F.rms_norm(x, (4,), w), x, w, dynamic=dynamic)
    agrees(lambda x: F.group_norm(x, 3), x, dynamic=dynamic)
    agrees(lambda x: F.softmax(x, 1), x, dynamic=dynamic)
    agrees(lambda x: F.log_softmax(x, -1), x, dynamic=dynamic)
    agrees(lambda x: F.normalize(x, dim=1), x, dynamic=dynamic)
    agrees(lambda x: torch.linalg.vector_norm(x, 3, dim=(1, 2)), x, dynamic=dynamic)
    agrees(lambda x: F.instance_norm(x), x, dynamic=dynamic)


def test_softmax_of_16_bit_floats_and_of_a_masked_row() -> None:
    found, _ = compile_and_run(lambda x: F.softmax(x, -1), [torch.randn(3, 9).bfloat16()])
    assert found.dtype == torch.bfloat16
    agrees(lambda x: F.softmax(x, -1), torch.tensor([[1.0, -math.inf, 2.0], [-math.inf, -math.inf, 0.0]]))


def test_losses() -> None:
    x, t = torch.randn(6, 5), torch.tensor([0, 4, 2, 1, -100, 3])
    agrees(lambda x, t: F.cross_entropy(x, t), x, t)
    agrees(lambda x, y: F.mse_loss(x, y), x, torch.randn(6, 5))
    agrees(lambda x, y: F.binary_cross_entropy_with_logits(x, y), x, torch.rand(6, 5))
