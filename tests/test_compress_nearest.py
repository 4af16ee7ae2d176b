"""Grids and rounding: codes against a search of all of them, ranges against their definitions, and weights at the ends of float32."""

from __future__ import annotations

import itertools
from typing import get_args

import pytest
import torch
from compress_cases import SIZES, weight_of_size
from torch import Tensor

from effc.compiler.compress.clipping import KEPT, by_error, by_max, by_percentile
from effc.compiler.compress.double import BLOCK, double_quantized
from effc.compiler.compress.grid import Grid
from effc.compiler.compress.nearest import nearest
from effc.compiler.compress.quantized import QuantizedWeight
from effc.compiler.compress.rounding import LEAST_SCALE
from effc.compiler.ir.errors import OptionError
from effc.compiler.ir.quantization import Scheme, Weights

SCHEMES = [
    Scheme(weights, group, symmetric)
    for weights, group, symmetric in itertools.product(get_args(Weights), (0, 1, 6), (True, False))
    if symmetric or weights != "nf4"
]


def reference(found: QuantizedWeight, size: int) -> Tensor:
    """What each code may stand for, float64 ``[out, in, codes]``."""
    scheme = found.scheme
    low, high = scheme.limits
    times = size // found.scales.shape[1]
    scales = found.scales.double().repeat_interleave(times, 1)
    zeros = torch.zeros_like(scales) if found.zeros is None else found.zeros.double().repeat_interleave(times, 1)
    codes = torch.arange(low, high + 1).double()
    values = torch.tensor(scheme.codebook).double() if scheme.codebook else codes
    return (values - zeros[..., None]) * scales[..., None]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("make", [torch.randn, lambda *s: torch.randn(*s).relu(), lambda *s: -torch.rand(*s) - 3])
def test_no_code_is_nearer(scheme: Scheme, make: object) -> None:
    weight: Tensor = make(5, 24)  # type: ignore[operator]
    for weight_ in (weight, weight.t().contiguous().t()):  # the second lies by columns
        found = nearest(weight_, by_max(weight_, scheme))
        low, high = scheme.limits
        assert found.codes.dtype == torch.int8
        assert found.codes.shape == weight.shape
        assert low <= int(found.codes.min()) <= int(found.codes.max()) <= high
        possible = reference(found, 24)
        torch.testing.assert_close(
            found.stored().double(), possible.gather(2, (found.codes.long() - low)[..., None])[..., 0]
        )
        least = (possible - weight.double()[..., None]).abs().amin(2)
        step = found.scales.repeat_interleave(24 // found.scales.shape[1], 1)
        assert bool(((found.stored() - weight).abs() <= least + 1e-5 * step).all())


@pytest.mark.parametrize("weights", ["int8", "int4", "int2"])
def test_zero_points_at_the_ends_of_the_range(weights: str) -> None:
    scheme = Scheme(weights, symmetric=False)  # type: ignore[arg-type]
    weight = torch.rand(3, 40) + 1
    for sign, end in ((1, scheme.limits[0]), (-1, scheme.limits[1])):
        found = nearest(sign * weight, by_max(sign * weight, scheme))
        assert found.zeros is not None
        assert found.zeros.dtype == torch.int8
        assert found.zeros.unique().tolist() == [end]
        assert float((found.stored() - sign * weight).abs().max()) <= 0.5001 * float(found.scales.max())


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_finite_weights_stay_finite(scheme: Scheme, size: float) -> None:
    weight = weight_of_size(size)
    for ranges in (by_max, by_percentile, by_error):
        for grid in (ranges(weight, scheme), double_quantized(ranges(weight, scheme))):
            found = nearest(weight, grid)
            assert bool(grid.scales.isfinite().all())
            assert float(grid.scales.min()) >= LEAST_SCALE
            assert bool(found.stored().isfinite().all())
            assert bool((found.stored()[1] == 0).all())
    exact = nearest(weight, by_max(weight, scheme)).stored()
    assert float((exact - weight).abs().max()) <= max(0.7 * size, 1e-7, 8 * LEAST_SCALE)


def test_a_near_dead_channel_keeps_its_precision() -> None:
    weight = torch.randn(2, 64)
    weight[1] *= 1e-7 / weight[1].abs().max()
    error = (nearest(weight, by_max(weight, Scheme())).stored() - weight).abs().amax(1)
    assert float(error[1]) <= 0.51e-7 / 127


# -- ranges ----------------------------------------------------------------------------------------------------------
def test_percentiles_are_those_of_torch() -> None:
    weight = torch.randn(3, 4000)
    for scheme in (Scheme("int4", 2000, symmetric=False), Scheme("int2", 1000), Scheme("int8")):
        grid = by_percentile(weight, scheme)
        groups = weight.reshape(3, -1, scheme.group or 4000)
        kept = KEPT[scheme.bits]
        expected = (
            Grid.of(scheme, -(r := groups.abs().quantile(kept, dim=2)), r)
            if scheme.symmetric
            else Grid.of(scheme, groups.quantile(1 - kept, dim=2), groups.quantile(kept, dim=2))
        )
        torch.testing.assert_close(grid.scales, expected.scales)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_least_error_is_the_least_of_all_shares(scheme: Scheme) -> None:
    weight, importance = torch.randn(6, 96) ** 3, torch.rand(96) + 0.1
    group = scheme.group or 96

    def errors(grid: Grid) -> Tensor:
        squares = (nearest(weight, grid).stored() - weight).square() * importance
        return squares.reshape(6, -1, group).sum(2)

    found, extremes = errors(by_error(weight, scheme, importance)), errors(by_max(weight, scheme))
    least, greatest = weight.reshape(6, -1, group).aminmax(dim=2)
    best = torch.stack([errors(Grid.of(scheme, least * r, greatest * r)) for r in torch.linspace(0.3, 1, 15)]).amin(0)
    torch.testing.assert_close(found, best, rtol=1e-3, atol=1e-9)
    assert bool((found <= extremes * 1.0001 + 1e-9).all())
    if scheme.bits < 8 and group == 96:
        assert float(found.sum()) < float(extremes.sum())


# -- double quantization ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("groups", [1, 5, 64])
def test_scales_of_scales(groups: int) -> None:
    """int8 codes, a block scale for 256 of them, and one mean: within half a step of the exact scales, and always positive."""
    scheme = Scheme("nf4", scales="double")
    exact = Grid(scheme, torch.rand(7, groups) ** 4 + 1e-30)
    found = double_quantized(exact)
    assert found.scale_codes is not None
    stored = found.scale_codes
    assert stored.codes.dtype == torch.int8
    assert stored.codes.shape == exact.scales.shape
    assert stored.block_scales.shape == (-(-7 * groups // BLOCK),)
    by_hand = torch.empty(7 * groups)
    for i, code in enumerate(stored.codes.flatten().tolist()):
        by_hand[i] = stored.mean + code * stored.block_scales[i // BLOCK]
    torch.testing.assert_close(found.scales.flatten(), by_hand)
    assert float(found.scales.min()) > 0
    step = stored.block_scales.repeat_interleave(BLOCK)[: 7 * groups].reshape(7, groups)
    off = (found.scales - exact.scales).abs()
    assert bool((off <= 1.01 * step).all())
    assert bool((off <= 0.501 * step + 1e-6)[exact.scales > step].all())


# -- schemes ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Scheme("int3"), "weights is one of int8, int4, int2, nf4, not 'int3'"),  # type: ignore[arg-type]
        (lambda: Scheme(activations="row"), "activations is one of float, token, tensor, not 'row'"),  # type: ignore[arg-type]
        (lambda: Scheme(group=-1), "a group has 1 element or more, or 0 for all of a channel, not -1"),
        (lambda: Scheme("nf4", symmetric=False), "nf4 has no zero points"),
    ],
)  # fmt: skip
def test_schemes_that_are_none(make: object, text: str) -> None:
    with pytest.raises(OptionError, match=text):
        make()  # type: ignore[operator]
