"""Windows of convolutions that calibration keeps, and factors that know how the positions of a window go together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_compress_smoothing import inputs_of
from torch import Tensor, nn

import effc
from effc.compiler.compress.inputs import Inputs
from effc.compiler.compress.low_rank.convolution import ConvolutionSpectrum
from effc.compiler.compress.low_rank.layer import Layer
from effc.compiler.compress.low_rank.ranks import Ranks


def seen(model: nn.Module, *batches: Tensor, rows: int = 10_000) -> Tensor:
    """The windows of the parameter ``weight``."""
    return windows_of(effc.calibrate(model.eval(), batches, rows=rows))


def windows_of(calibration: effc.Calibration) -> Tensor:
    windows = calibration.sites["weight"].windows
    assert windows is not None
    return torch.from_numpy(windows)


@pytest.mark.parametrize(
    "moves",
    [
        {"kernel_size": 3},
        {"kernel_size": (3, 2), "stride": (2, 3), "padding": (1, 0)},
        {"kernel_size": (2, 5), "padding": (1, 2), "dilation": (3, 1)},
    ],
)
def test_windows_are_what_outputs_are_sums_over(moves: dict[str, Any]) -> None:
    model, x = nn.Conv2d(5, 4, **moves), torch.randn(2, 5, 13, 11)
    found = seen(model, x)
    moved = {name: moves[name] for name in ("stride", "padding", "dilation") if name in moves}
    expected = F.unfold(x, moves["kernel_size"], **moved).transpose(1, 2).reshape(found.shape)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("size", [3, 4])
def test_windows_of_the_same_size_of_lines_without_a_batch(size: int) -> None:
    model, x = nn.Conv1d(6, 6, size, padding="same", groups=2, bias=False), torch.randn(6, 17)
    windows = seen(model, x)
    exact = torch.einsum("nipk,oip->nko", windows.view(17, 2, 3, size).permute(0, 2, 3, 1), model.weight[:3])[:, 0]
    torch.testing.assert_close(exact.T, model(x)[:3])


def test_few_windows_of_many_are_kept_and_none_of_one_position(tmp_path: Path) -> None:
    model = nn.Conv2d(5, 4, 3)
    few = seen(model, torch.randn(2, 5, 13, 11), torch.randn(1, 5, 9, 30), rows=20)
    assert few.shape == (20, 5, 3, 3)
    calibration = effc.calibrate(model, [torch.randn(2, 5, 13, 11)])
    calibration.save(tmp_path / "kept")
    again = effc.Calibration.load(tmp_path / "kept")
    assert again == calibration
    assert torch.equal(windows_of(again), windows_of(calibration))
    for module, x in (
        (nn.Conv2d(5, 4, 1), torch.randn(1, 5, 7, 7)),
        (nn.ConvTranspose2d(5, 4, 3), torch.randn(1, 5, 7, 7)),
    ):
        assert effc.calibrate(module.eval(), [x]).sites["weight"].windows is None


# -- factors --------------------------------------------------------------------------------------------------------
def smooth(count: int, channels: int) -> Tensor:
    """Images ``[count, channels, 30, 30]``: neighbours are alike along rows, and hardly along columns; channels mixed."""
    noise = torch.randn(count, channels, 34, 30)
    alike = F.avg_pool2d(noise, (5, 1), stride=1) * 5**0.5
    return torch.einsum("nchw,cd->ndhw", alike, torch.randn(channels, channels)) + torch.randn(channels, 1, 1)


def of_images(x: Tensor, model: nn.Conv2d) -> Inputs:
    rows = x.movedim(1, -1).flatten(0, -2)
    return replace(inputs_of(rows), windows=seen(model, x, rows=2_000))


@pytest.mark.parametrize(("ranks", "share"), [(Ranks("tucker", (16, 16)), 0.9), (Ranks("separable", (16,)), 0.7)])
@pytest.mark.parametrize("groups", [1, 2])
def test_neighbours_that_are_alike_are_the_lesser_error(ranks: Ranks, share: float, groups: int) -> None:
    """On images that were not seen, against factors that take positions as uncorrelated; and its estimate is near."""
    model = nn.Conv2d(32 * groups, 48 * groups, 3, groups=groups, bias=False)
    every = smooth(12, 32 * groups)
    known, fresh = every[:6], every[6:].double()
    weight = model.weight.detach()
    layer, exact = Layer(weight, (1, 1), (1, 1), groups), F.conv2d(fresh, weight.double(), groups=groups)
    with_windows = of_images(known, model)
    errors = []
    for inputs in (with_windows, replace(with_windows, windows=None)):
        (chain,) = ConvolutionSpectrum(layer, inputs).factors(ranks, torch.float64)
        assert chain.shift is not None
        found = F.conv2d(fresh, chain.dense().view_as(weight).double(), chain.shift, groups=groups)
        errors.append(float((found - exact).square().mean() * exact.shape[1]))
    assert errors[0] < share * errors[1]
    (estimated,) = [error for error, of in ConvolutionSpectrum(layer, with_windows)._errors() if of == ranks]
    assert 0.85 * estimated < errors[0] < 1.15 * estimated


def test_windows_that_hold_one_value_are_no_error() -> None:
    model, x = nn.Conv2d(16, 24, 3), torch.ones(2, 16, 9, 9)
    spectrum = ConvolutionSpectrum(Layer(model.weight.detach(), (1, 1), (1, 1)), of_images(x, model))
    for ranks in (Ranks("tucker", (8, 8)), Ranks("separable", (8,))):
        (chain,) = spectrum.factors(ranks, torch.float32)
        assert bool(chain.dense().isfinite().all())
