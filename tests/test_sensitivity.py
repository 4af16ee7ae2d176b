"""``effc.calibrate(sensitivity=…)``: how much of an error of a layer the model's output shows, and ranks that are shared out by it."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from test_low_rank import nearly_low_rank, ranks, run
from test_quantize import off
from torch import Tensor, nn

import effc
from effc.compiler.compress.low_rank.convolution import ConvolutionSpectrum
from effc.compiler.compress.low_rank.layer import Layer
from effc.compiler.compress.low_rank.ranks import Ranks
from effc.compiler.compress.low_rank.spectrum import Spectrum
from effc.compiler.ir.calibration import Floats


def sensitivity(calibration: effc.Calibration, name: str) -> Floats:
    found = calibration.sites[name].sensitivity
    assert found is not None
    return found


def effects(calibration: effc.Calibration, name: str) -> Floats:
    found = calibration.sites[name].effects
    assert found is not None
    return found


class OneNumber(nn.Module):
    """Its gradients are known: a sum over positions of products with ``last``, of what is positive."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 8, 3), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(torch.relu_(self.conv(x)).sum((2, 3)))
        return y


@pytest.mark.parametrize("frozen", [False, True])
def test_squares_of_gradients_of_a_convolution(frozen: bool) -> None:
    torch.manual_seed(0)
    model = OneNumber().eval().requires_grad_(not frozen)
    batches = [torch.randn(n, 3, 9, 7) for n in (1, 3)]
    calibration = effc.calibrate(model, batches, sensitivity="values", held_out=0)
    assert all(p.grad is None for p in model.parameters())
    with torch.no_grad():
        positive = torch.cat([(model.conv(b) > 0).double().sum((2, 3)) for b in batches])
    expected = positive.mean(0) * model.last.weight.detach()[0].double().square()
    np.testing.assert_allclose(sensitivity(calibration, "conv.weight"), expected, rtol=1e-5)
    np.testing.assert_allclose(sensitivity(calibration, "last.weight"), [1.0])


def test_of_logits_it_is_fishers_information() -> None:
    """Of the last layer ``p (1 - p)``, in the mean."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 5)).eval()
    x = torch.randn(20000, 6)
    p = model(x).softmax(1).detach()
    found = effc.calibrate(model, [x], sensitivity="logits")
    np.testing.assert_allclose(sensitivity(found, "2.weight"), (p * (1 - p)).mean(0), rtol=0.03)


def test_the_statistics_are_the_same_with_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = OneNumber().eval(), torch.randn(2, 3, 9, 7)
    plain, found = (effc.calibrate(model, [x], sensitivity=s) for s in (None, "values"))
    assert plain.sites["conv.weight"].sensitivity is None
    np.testing.assert_array_equal(plain.sites["conv.weight"].mean, found.sites["conv.weight"].mean)
    assert torch.equal(plain.outputs[0], found.outputs[0])
    found.save(tmp_path / "calibration")
    again = effc.Calibration.load(tmp_path / "calibration")
    assert again == found != plain
    np.testing.assert_array_equal(sensitivity(again, "conv.weight"), sensitivity(found, "conv.weight"))
    np.testing.assert_array_equal(effects(again, "conv.weight"), effects(found, "conv.weight"))
    assert plain.sites["conv.weight"].effects is None


def test_what_the_output_shows_of_each_channel_of_a_sample() -> None:
    """Float64's gradients by what meets each layer, but for the signs by which outputs were multiplied."""
    torch.manual_seed(0)
    model = OneNumber().eval()
    batches = [torch.randn(n, 3, 9, 7) for n in (1, 3)]
    calibration = effc.calibrate(model, batches, sensitivity="values", held_out=0)
    exact, x = copy.deepcopy(model).double(), torch.cat(batches).double()
    (gradient,) = torch.autograd.grad(exact(x.requires_grad_()).sum(), x)
    x = x.detach()
    expected = ((x - x.mean((0, 2, 3), keepdim=True)) * gradient).sum((2, 3)).numpy()
    np.testing.assert_allclose(abs(effects(calibration, "conv.weight")), abs(expected), rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        features = torch.relu(exact.conv(x)).sum((2, 3))
        expected = ((features - features.mean(0)) * exact.last.weight).numpy()
    np.testing.assert_allclose(abs(effects(calibration, "last.weight")), abs(expected), rtol=1e-4, atol=1e-4)


class Prompted(nn.Module):
    """Rows of its own stand before those of the batch in one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.prompt = nn.Parameter(torch.randn(2, 6))
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.first(torch.cat([self.prompt, x])))
        result: Tensor = self.second(y[2:] + y[:2].sum(0))
        return result


def test_samples_that_cannot_be_told_apart() -> None:
    torch.manual_seed(0)
    found = effc.calibrate(Prompted().eval(), [torch.randn(5, 6)], sensitivity="values").sites
    assert found["first.weight"].effects is None
    assert found["first.weight"].sensitivity is not None
    assert found["second.weight"].effects is not None


class Turned(nn.Module):
    """Its layer sees positions first, of which there are as many as two batches have samples."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.second(torch.tanh(self.first(x.transpose(0, 1))).mean(0))
        return result


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.experts, self.second = nn.Parameter(torch.randn(10, 6, 8)), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.bmm(x[:, 0].expand(10, -1, -1), self.experts)
        result: Tensor = self.second(torch.tanh(y).sum(0))
        return result


@pytest.mark.parametrize(("model", "unknown"), [(Turned, "first.weight"), (Experts, "experts")])
def test_what_lies_along_the_first_dimension_need_not_be_samples(model: type[nn.Module], unknown: str) -> None:
    torch.manual_seed(0)
    found = effc.calibrate(model().eval(), [torch.randn(5, 10, 6)], sensitivity="values").sites
    assert found[unknown].effects is None
    assert effects_shape(found["second.weight"].effects) == (5, 8)


def test_rows_of_samples_are_told_apart() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(0, 1), nn.Linear(6, 8), nn.Unflatten(0, (5, 10)), nn.Flatten(), nn.Linear(80, 2))
    found = effc.calibrate(model.eval(), [torch.randn(5, 10, 6)], sensitivity="values").sites
    assert effects_shape(found["1.weight"].effects) == (5, 6)


def effects_shape(found: Floats | None) -> tuple[int, ...]:
    assert found is not None
    return found.shape


class Detached(OneNumber):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach()


class Summed(OneNumber):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).sum()


def test_refusals() -> None:
    x = torch.randn(2, 3, 9, 7)
    with pytest.raises(
        effc.InputError, match="the model's outputs carry no gradients, which sensitivity is measured by"
    ):
        effc.calibrate(Detached().eval(), [x], sensitivity="values")
    with pytest.raises(effc.OptionError, match="'sensitivity' is 'loss': expected None, or one of logits, values"):
        effc.calibrate(OneNumber().eval(), [x], sensitivity="loss")  # type: ignore[arg-type]
    with pytest.raises(effc.InputError, match="the model's output is one number, not logits of classes"):
        effc.calibrate(Summed().eval(), [x], sensitivity="logits")
    with torch.inference_mode():
        made_there = OneNumber().eval()
    with pytest.raises(effc.InputError, match=r"the model's weights were made under torch.inference_mode\(\)"):
        effc.calibrate(made_there, [x], sensitivity="values")


def test_under_inference_mode() -> None:
    model, x = OneNumber().eval(), torch.randn(2, 3, 9, 7)
    expected = effc.calibrate(model, [x], sensitivity="values")
    with torch.inference_mode():
        assert effc.calibrate(model, [x.clone()], sensitivity="values") == expected


# -- factors by it --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "ranks", [Ranks("product", (8,)), Ranks("tucker", (8, 8)), Ranks("tucker", (8, 40)), Ranks("separable", (8,))]
)
def test_channels_that_the_output_shows_are_nearer(ranks: Ranks) -> None:
    """Errors, weighted, against those of factors that do not know; a convolution's and, of a window of one position, a linear layer's."""
    torch.manual_seed(0)
    scales = torch.ones(40, dtype=torch.float64)
    scales[:10] = 100
    window = (1, 1) if ranks.kind == "product" else (3, 3)
    weight = torch.randn(40, 24, *window)
    layer = Layer(weight, (1, 1), (1, 1))

    def error(spectrum: ConvolutionSpectrum) -> float:
        (chain,) = spectrum.factors(ranks, torch.float64)
        return float((scales[:, None] * (chain.dense() - weight.flatten(1))).norm())

    ours = error(ConvolutionSpectrum(layer, None, scales))
    assert ours < 0.9 * error(ConvolutionSpectrum(layer, None))
    if ranks.kind == "product":
        spectrum = Spectrum.of([weight.flatten(1)], None, [scales])
        (factors,) = spectrum.factors(ranks, torch.float64)
        found = float((scales[:, None] * (factors.dense() - weight.flatten(1))).norm())
        assert found == pytest.approx(ours, rel=1e-4)
        assert found**2 == pytest.approx(float(spectrum.errors()[8]), rel=1e-3)


class Quiet(nn.Module):
    """Of two layers alike, one whose output hardly counts."""

    def __init__(self) -> None:
        super().__init__()
        self.loud, self.quiet = nn.Linear(96, 96), nn.Linear(96, 96)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.tanh(self.loud(x)) + 0.01 * torch.tanh(self.quiet(x.flip(-1)))
        return y


def test_ranks_are_shared_out_by_it() -> None:
    torch.manual_seed(0)
    model, x = Quiet().eval(), torch.randn(500, 96)
    with torch.no_grad():
        for layer in (model.loud, model.quiet):
            layer.weight.copy_(nearly_low_rank(96, 96, 32) + 0.02 * torch.randn(96, 96))
    errors = []
    for probe in (None, "values"):
        torch._dynamo.reset()
        calibration = effc.calibrate(model, [x], sensitivity=probe)
        found, recording = run(model, x, {"parameters": 0.7, "method": "output", "calibration": calibration})
        errors.append(off(found, model, x))
    assert "loud.weight" not in ranks(recording)
    assert errors[1] < 0.2 * errors[0]


class Images(nn.Module):
    """Two convolutions alike, one on images of sixteen times as many positions; the output adds them up."""

    def __init__(self) -> None:
        super().__init__()
        self.large, self.small = nn.Conv2d(48, 48, 1), nn.Conv2d(48, 48, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.tanh(self.large(x)).sum((2, 3)) + torch.tanh(self.small(x[..., :4, :4])).sum((2, 3))
        return y


def test_layers_of_large_images_count_more() -> None:
    """What is off at every position of an image is off as often."""
    torch.manual_seed(0)
    model, x = Images().eval(), torch.randn(16, 48, 16, 16)
    with torch.no_grad():
        model.small.weight.copy_(model.large.weight)
    calibration = effc.calibrate(model, [x], sensitivity="values")
    ratio = sensitivity(calibration, "large.weight") / sensitivity(calibration, "small.weight")
    np.testing.assert_allclose(ratio, np.full(48, 16.0), rtol=0.2)
    recording = run(model, x, {"parameters": 0.7, "method": "output", "calibration": calibration})[1]
    assert "large.weight" not in ranks(recording)
