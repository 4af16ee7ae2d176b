"""AWQ, SmoothQuant and int8 activations: products are kept, outliers cost less, and no channel of zeros breaks anything."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from effc.compiler.compress import awq, smoothquant
from effc.compiler.compress.activations import ActivationRange, by_token, held
from effc.compiler.compress.inputs import Inputs
from effc.compiler.compress.recipe import quantize
from effc.compiler.ir.calibration import Statistics
from effc.compiler.ir.quantization import Recipe, Scheme, Smoothing


def outliers(rows: int, channels: int) -> Tensor:
    """Some channels 50 times as large as the rest, as in language models."""
    sizes = torch.ones(channels)
    sizes[:: channels // 4] = 50
    return torch.randn(rows, channels) * sizes


def statistics_of(rows: Tensor) -> Statistics:
    moment = (rows.T @ rows / len(rows)).numpy()
    unused = torch.zeros(1).numpy()
    return Statistics(
        rows.amin(0).numpy(), rows.amax(0).numpy(), rows.mean(0).numpy(), rows.square().mean(0).numpy(), rows[:128].numpy(), moment,
        len(rows), unused, unused,
    )  # fmt: skip


def inputs_of(rows: Tensor) -> Inputs:
    return Inputs.of(statistics_of(rows), "layer")


@pytest.mark.parametrize("smoothing", ["awq", "smoothquant"])
def test_the_product_is_kept(smoothing: Smoothing) -> None:
    """Exact weights and activations under the smoothing found give the exact product."""
    rows, weight = outliers(400, 64), torch.randn(32, 64)
    found = quantize({"w": weight}, Scheme("int4", 16), Recipe(smoothing), statistics_of(rows))["w"]
    assert found.smoothing is not None
    factors = found.smoothing.double()
    smooth = (rows.double() / factors) @ (weight.double() * factors).T
    torch.testing.assert_close(smooth, rows.double() @ weight.double().T, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.dense(), (found.stored().double() / factors).float())
    assert float(found.smoothing.log().mean()) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    ("smoothing", "scheme", "gain"),
    [("awq", Scheme("int4", 16), 0.7), ("smoothquant", Scheme("int4", 16), 0.7), ("smoothquant", Scheme(activations="token"), 0.5),
     ("smoothquant", Scheme(activations="tensor"), 0.5)],
)  # fmt: skip
def test_outliers_cost_less(smoothing: Smoothing, scheme: Scheme, gain: float) -> None:
    """On rows that calibration has not seen."""
    seen, fresh, weight = outliers(400, 64), outliers(300, 64), torch.randn(48, 64)

    def error(recipe: Recipe) -> float:
        found = quantize({"w": weight}, scheme, recipe, statistics_of(seen))["w"]
        factors = torch.ones(64) if found.smoothing is None else found.smoothing
        rows = held(fresh / factors, scheme, inputs_of(seen).over(factors))
        return float((rows @ found.stored().T - fresh @ weight.T).norm())

    assert error(Recipe(smoothing)) < gain * error(Recipe())


@pytest.mark.parametrize("search", [awq.scales, smoothquant.scales])
def test_scales_do_not_depend_on_units(search: object) -> None:
    """Activations ten times as large, weights a tenth, or rows in another order: the same smoothing."""
    rows, weight, scheme = outliers(200, 32), torch.randn(16, 32), Scheme("int4", 8)
    found: Tensor = search([weight], scheme, inputs_of(rows))  # type: ignore[operator]
    for changed in (
        search([weight / 16], scheme, inputs_of(rows * 8)),  # type: ignore[operator]
        search([weight.flip(0)], scheme, inputs_of(rows)),  # type: ignore[operator]
        search([weight[:8], weight[8:]], scheme, inputs_of(rows)),  # type: ignore[operator]
    ):
        torch.testing.assert_close(changed, found)
    assert float(found.max() / found.min()) > 2


def test_smoothquant_by_its_equation() -> None:
    rows, weights = outliers(100, 16), [torch.randn(5, 16), torch.randn(7, 16)]
    found = smoothquant.factors(weights, inputs_of(rows), 0.5)
    largest = torch.cat(weights).abs().amax(0)
    expected = (rows.abs().amax(0) / largest).sqrt()
    torch.testing.assert_close(found / found[0], expected / expected[0])


def test_no_smoothing_where_it_gains_nothing() -> None:
    """One channel cannot be smoothed, and a weight that is exact on its grid is best left alone."""
    weight = torch.randint(-7, 8, (6, 16)).float()
    weight[:, 0] = 7
    for search in (awq.scales, smoothquant.scales):
        assert torch.equal(search([weight], Scheme("int4"), inputs_of(outliers(50, 16))), torch.ones(16))


@pytest.mark.parametrize("smoothing", ["awq", "smoothquant"])
@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
@pytest.mark.parametrize("activations", ["float", "token", "tensor"])
def test_dead_channels(smoothing: Smoothing, rounding: object, activations: object) -> None:
    """Of activations, of weights, and of both; the rest of the layer is as good as without them."""
    rows, weight = outliers(100, 32), torch.randn(8, 32)
    rows[:, 3:6], weight[:, 5:8], weight[2], rows[:, 20], weight[:, 21] = 0, 0, 0, 1e-30, 1e-7
    scheme = Scheme("int4", 8, activations=activations)  # type: ignore[arg-type]
    for seen in (rows, torch.zeros_like(rows)):
        found = quantize({"w": weight}, scheme, Recipe(smoothing, rounding), statistics_of(seen))["w"]  # type: ignore[arg-type]
        assert found.smoothing is not None
        assert bool(found.smoothing.isfinite().all())
        assert float(found.smoothing.min()) > 0
        assert bool(found.dense().isfinite().all())
        assert float(((found.dense() - weight) @ rows.T).norm() / (weight @ rows.T).norm()) < 0.3


# -- activations ------------------------------------------------------------------------------------------------------
def test_tokens_are_rounded_by_their_own_scale() -> None:
    x = torch.randn(3, 5, 16) * torch.tensor([1e-6, 1.0, 1e6])[:, None, None]
    x[1, 2] = 0
    found = by_token(x)
    step = x.abs().amax(-1, keepdim=True) / 127
    assert bool(((found - x).abs() <= 0.5001 * step).all())
    assert bool((found[1, 2] == 0).all())


@pytest.mark.parametrize(
    ("least", "greatest", "zero"), [(0.0, 6.0, 0), (-3.0, 0.0, 255), (2.0, 6.0, 0), (-1.0, 1.0, 128)]
)
def test_the_static_range_holds_zero_exactly(least: float, greatest: float, zero: int) -> None:
    x = torch.linspace(least, greatest, 500)
    found = ActivationRange.of(torch.tensor([least, least / 2]), torch.tensor([greatest, greatest / 2]))
    assert found.zero == zero
    assert bool(((found.rounded(x) - x).abs() <= 0.5001 * found.scale).all())
    assert float(found.rounded(torch.zeros(1))) == 0
    clipped = found.rounded(torch.tensor([-100.0, 100.0]))
    assert clipped.tolist() == pytest.approx([min(least, 0), max(greatest, 0)], abs=found.scale)
    assert ActivationRange.of(torch.zeros(3), torch.zeros(3)).scale > 0
