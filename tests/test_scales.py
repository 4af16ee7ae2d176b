"""Scales of a convolution's channels, folded into its weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from exactness import assert_exact
from torch import Tensor, nn

import effc

Compiler = Callable[..., Callable[..., Any]]


def _random(model: nn.Module) -> nn.Module:
    """``model`` with statistics and factors as training leaves them."""
    with torch.no_grad():
        for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.running_mean.normal_()  # type: ignore[union-attr]
            norm.running_var.uniform_(0.2, 3)  # type: ignore[union-attr]
            norm.weight.normal_()
            norm.bias.normal_()
    return model.eval()


def _multiplies(model: nn.Module, x: Tensor) -> bool:
    """Whether a kernel of ``model(x)`` multiplies what it has summed."""
    return "mulf" in str(effc.explain(model, x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(6, 10, 1, bias=False),
        nn.Conv2d(6, 10, 3, stride=2, padding=1),
        nn.Conv2d(6, 6, 3, padding=1, groups=6),
        nn.Conv2d(6, 12, 3, groups=3, bias=False),
        nn.Conv2d(6, 1, 3),
    ],
    ids=["pointwise", "bias", "depthwise", "grouped", "one channel"],
)
def test_a_batch_norm_costs_no_multiplication(conv: nn.Conv2d, dtype: torch.dtype, compiled: Compiler) -> None:
    model = _random(nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels))).to(dtype)
    x = torch.randn(2, 6, 9, 7, dtype=dtype)
    with torch.no_grad():
        assert_exact(model, (x,), compiled(model, fullgraph=True))
        assert not _multiplies(model, x)


def test_a_changed_scale_is_followed(compiled: Compiler) -> None:
    norm = nn.BatchNorm2d(10)
    model = _random(nn.Sequential(nn.Conv2d(6, 10, 3), norm))
    x = torch.randn(2, 6, 9, 7)
    with torch.no_grad():
        fast = compiled(model, fullgraph=True)
        before = fast(x).clone()
        norm.weight.mul_(3)
        assert not torch.allclose(fast(x), before)
        assert_exact(model, (x,), fast)


class _Scaled(nn.Module):
    """``conv(x)`` times ``factor(x)``."""

    def __init__(self, factor: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.factor = nn.Conv2d(6, 10, 3), factor

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x) * self.factor(x)
        return y


@pytest.mark.parametrize(
    "model",
    [
        _Scaled(lambda x: x.mean((0, 2, 3))[:1].view(1, 1, 1)),
        _Scaled(lambda x: torch.ones(7, 5) * 2),
        _Scaled(lambda x: torch.full((10, 1, 1), 2.0) + x.mean()),
    ],
    ids=["of the input", "of positions", "of channels and the input"],
)
def test_other_factors_stay(model: nn.Module, compiled: Compiler) -> None:
    x = torch.randn(2, 6, 9, 7)
    with torch.no_grad():
        assert_exact(model, (x,), compiled(model))
        assert _multiplies(model, x)


def test_a_result_that_is_read_unscaled_stays(compiled: Compiler) -> None:
    norm = _random(nn.Sequential(nn.BatchNorm2d(10)))[0]  # type: ignore[index]
    conv = nn.Conv2d(6, 10, 3)

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = conv, norm

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            z: Tensor = self.norm(y) + y
            return z

    x = torch.randn(2, 6, 9, 7)
    with torch.no_grad():
        assert_exact(Both(), (x,), compiled(Both()))
        assert _multiplies(Both(), x)


def test_sixteen_bit_weights_are_not_rounded_again() -> None:
    model = _random(nn.Sequential(nn.Conv2d(6, 10, 3), nn.BatchNorm2d(10))).bfloat16()
    with torch.no_grad():
        assert _multiplies(model, torch.randn(2, 6, 9, 7, dtype=torch.bfloat16))


def test_sizes_that_nobody_else_reads_stay(compiled: Compiler) -> None:
    """A dynamic size may have no reader in the graph but effc's code."""
    model = _random(nn.Sequential(nn.Conv2d(6, 10, 3), nn.BatchNorm2d(10)))
    with torch.no_grad():
        fast = compiled(model, fullgraph=True, dynamic=True)
        for shape in ((2, 6, 9, 7), (3, 6, 5, 11)):
            assert_exact(model, (torch.randn(shape),), fast)
