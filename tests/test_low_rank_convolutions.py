"""Factors of convolutions: how good they are, which are chosen, and that a model with them computes what it should."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fixed_times import by_size, fix
from test_compress_smoothing import inputs_of, outliers
from test_low_rank import run
from test_quantize import compiled, off
from torch import Tensor, nn

import effc
from effc.compiler.capture.recording import Recording
from effc.compiler.compress.low_rank.convolution import ConvolutionSpectrum
from effc.compiler.compress.low_rank.factorize import Spectra
from effc.compiler.compress.low_rank.filters import FilterChain
from effc.compiler.compress.low_rank.layer import Layer
from effc.compiler.compress.low_rank.ranks import Ranks
from effc.passes.low_rank import LowRank


def tucker(first: int, second: int) -> Ranks:
    return Ranks("tucker", (first, second))


def separable(rank: int) -> Ranks:
    return Ranks("separable", (rank,))


def layer(weight: Tensor, stride: int = 1, groups: int = 1, dilation: int = 1) -> Layer:
    dims = weight.dim() - 2
    return Layer(weight, (stride,) * dims, (dilation,) * dims, groups)


def chains(recording: Recording) -> dict[str, FilterChain]:
    (compressed,) = recording.compressed
    forms = {name: w.form for name, w in compressed.stages[0].weights.items()}
    return {name: form for name, form in forms.items() if isinstance(form, FilterChain)}


def of_tucker(out: int, width: int, first: int, second: int, *window: int) -> Tensor:
    core = torch.randn(second, first, *window)
    return torch.einsum("ob,ba...,ia->oi...", torch.randn(out, second), core, torch.randn(width, first)) / width


def error(weight: Tensor, chain: FilterChain) -> float:
    return float((chain.dense().view_as(weight).double() - weight.double()).norm() / weight.double().norm())


# -- factors --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("window", [(3, 3), (5,), (1, 7), (2, 3, 3)])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_weight_of_these_ranks_is_found(window: tuple[int, ...], groups: int) -> None:
    torch.manual_seed(0)
    weight = torch.cat([of_tucker(21, 18, 5, 7, *window) for _ in range(groups)])
    (chain,) = ConvolutionSpectrum(layer(weight, groups=groups), None).factors(tucker(5, 7), torch.float64)
    assert chain.ranks == (5, 7)
    assert error(weight, chain) < 1e-6
    for ranks in (tucker(5, 21), tucker(18, 7)):  # one side keeps its channels: two kernels
        (chain,) = ConvolutionSpectrum(layer(weight, groups=groups), None).factors(ranks, torch.float64)
        assert len(chain.kernels) == 2
        assert error(weight, chain) < 1e-6


def test_no_other_directions_are_better_than_those_of_tucker() -> None:
    """The core given both sides is the best, so only these are moved; errors by rank are upper bounds, which HOOI lowers."""
    torch.manual_seed(0)
    weight = torch.randn(24, 20, 3, 3)
    spectrum = ConvolutionSpectrum(layer(weight), None)
    (chain,) = spectrum.factors(tucker(6, 9), torch.float64)
    first, _, last = (kernel.flatten(1) for kernel in chain.kernels)

    def left(ins: Tensor, outs: Tensor) -> float:
        a, b = torch.linalg.qr(ins.T)[0], torch.linalg.qr(outs)[0]
        found = torch.einsum("oihw,ia,ja,ob,pb->pjhw", weight.double(), a, a, b, b)
        return float((found - weight).norm() / weight.norm())

    ours = left(first, last)
    assert ours == pytest.approx(error(weight, chain), rel=1e-6)
    assert all(ours < left(first + 0.1 * torch.randn_like(first), last) for _ in range(5))
    assert all(ours < left(first, last + 0.1 * torch.randn_like(last)) for _ in range(5))
    (kernel,) = spectrum.kernels
    assert ours**2 <= float(kernel.tucker_errors()[6, 9] / weight.double().square().sum())


def test_one_way_filters_are_the_truncated_decomposition() -> None:
    torch.manual_seed(0)
    weight = torch.randn(12, 10, 3, 5)
    (chain,) = ConvolutionSpectrum(layer(weight), None).factors(separable(8), torch.float64)
    assert [kernel.shape for kernel in chain.kernels] == [(8, 10, 3, 1), (12, 8, 1, 5)]
    values = torch.linalg.svdvals(weight.double().permute(0, 3, 1, 2).reshape(60, 30))
    assert error(weight, chain) ** 2 == pytest.approx(float((values[8:] ** 2).sum() / (values**2).sum()), rel=1e-6)


@pytest.mark.parametrize("ranks", [tucker(6, 8), tucker(6, 20), separable(12), Ranks("product", (6,))])
@pytest.mark.parametrize("groups", [1, 2])
def test_activations_tell_what_matters(ranks: Ranks, groups: int) -> None:
    """Against the factors of the weight alone, by far, on activations that are what the estimate takes them for; and the mean is right."""
    torch.manual_seed(0)
    window = (1, 1) if ranks.kind == "product" else (3, 3)
    rows = outliers(20 * 32 * 32, 16 * groups) + 3 * torch.randn(16 * groups)
    x = rows.view(20, 32, 32, -1).permute(0, 3, 1, 2).double()
    one = layer(torch.randn(20 * groups, 16, *window), groups=groups)
    exact = F.conv2d(x, one.weight.double(), groups=groups)

    def off(inputs: bool) -> tuple[float, FilterChain]:
        (chain,) = ConvolutionSpectrum(one, inputs_of(rows) if inputs else None).factors(ranks, torch.float64)
        found = F.conv2d(x, chain.dense().view_as(one.weight).double(), chain.shift, groups=groups)
        return float((found - exact).norm() / exact.norm()), chain

    ours, chain = off(inputs=True)
    assert ours < 0.8 * off(inputs=False)[0]
    assert chain.shift is not None
    found = F.conv2d(x, chain.dense().view_as(one.weight).double(), groups=groups)
    lost = (exact - found).mean((0, 2, 3))
    assert float((lost - chain.shift).norm()) < 0.2 * float(lost.norm())
    errors = [p for p in ConvolutionSpectrum(one, inputs_of(rows))._errors() if p[1] == ranks]
    assert all(ours**2 <= 1.05 * e for e, _ in errors)


def test_channels_that_calibration_saw_at_zero() -> None:
    torch.manual_seed(0)
    rows = torch.randn(100, 24)
    rows[:, :10] = 0
    spectrum = ConvolutionSpectrum(layer(torch.randn(40, 24, 3, 3)), inputs_of(rows))
    for ranks in (tucker(16, 16), separable(16)):
        (chain,) = spectrum.factors(ranks, torch.float32)
        assert bool(chain.dense().isfinite().all())


# -- which are chosen -----------------------------------------------------------------------------------------------
def test_products_count_positions_strides_and_winograd() -> None:
    dense = layer(torch.zeros(64, 64, 3, 3))
    assert dense.products(None) == 4 * 64 * 64  # by Winograd's method
    assert layer(torch.zeros(64, 64, 3, 3), stride=2).products(None) == 9 * 64 * 64
    assert layer(torch.zeros(64, 64, 3, 3), dilation=2).products(None) == 9 * 64 * 64
    assert dense.products(tucker(32, 48)) == 64 * 32 + 4 * 32 * 48 + 48 * 64
    assert dense.products(separable(16)) == 2 * 3 * 16 * 64
    strided = layer(torch.zeros(64, 64, 3, 3), stride=2)
    assert strided.products(tucker(32, 48)) == 4 * 64 * 32 + 9 * 32 * 48 + 48 * 64
    assert strided.products(separable(16)) == 2 * 3 * 16 * 64 + 3 * 16 * 64


def test_what_saves_parameters_costs_no_time() -> None:
    """One-way filters of rank 64 hold less than half of the parameters, but take as many products as Winograd's method."""
    torch.manual_seed(0)
    points = ConvolutionSpectrum(layer(torch.randn(96, 96, 3, 3)), None).curve().points
    one = layer(torch.zeros(96, 96, 3, 3))
    assert points
    assert all(one.products(p.ranks) < one.products(None) for p in points)
    assert one.size(separable(64)) < one.weight.numel() / 2
    assert one.products(separable(64)) >= one.products(None)


def test_each_layer_becomes_what_it_is_near_to() -> None:
    torch.manual_seed(0)
    mixed = of_tucker(96, 96, 24, 24, 3, 3)
    ways = torch.einsum("orw,rih->oihw", torch.randn(96, 16, 5), torch.randn(16, 96, 5))
    for weight, kind in ((mixed, "tucker"), (ways, "separable")):
        points = ConvolutionSpectrum(layer(weight, stride=2), None).curve().points
        assert min((p for p in points if p.error < 1e-6), key=lambda p: p.size).ranks.kind == kind


# -- in a model -----------------------------------------------------------------------------------------------------
class Filters(nn.Module):
    """Windows, strides, paddings, dilations and groups of many kinds; one convolution with no bias, one for two activations."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(5, 48, 3, padding=1)
        self.strided = nn.Conv2d(48, 64, (5, 3), stride=(2, 1), padding=(2, 0), dilation=(1, 2), bias=False)
        self.grouped = nn.Conv2d(64, 96, 3, stride=2, padding=1, groups=2)
        self.depthwise = nn.Conv2d(96, 96, 3, padding=1, groups=96)
        self.point = nn.Conv2d(96, 72, 1, stride=2)
        self.shared = nn.Conv2d(72, 72, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.grouped(F.silu(self.strided(torch.relu(self.first(x))))))
        y = torch.relu(self.point(self.depthwise(y)))
        return torch.cat([self.shared(y), self.shared(y.flip(3))], 1)


def filters() -> tuple[Filters, Tensor]:
    torch.manual_seed(0)
    return Filters().eval(), torch.randn(2, 5, 37, 23)


@pytest.mark.parametrize(
    ("method", "low_rank"),
    [("svd", {"rank_ratio": 0.5}), ("svd", {"parameters": 0.3}), ("output", {"rank_ratio": 0.5}), ("output", {"parameters": 0.4})],
)  # fmt: skip
def test_a_model_computes_what_eager_makes_of_the_dense_form(low_rank: dict[str, Any], method: str) -> None:
    """Against float64, with the weights that the factors stand for."""
    model, x = filters()
    calibration = effc.calibrate(model, [x, torch.randn(2, 5, 37, 23)], held_out=0)
    options = {**low_rank, "method": method, "calibration": calibration}
    found, recording = run(model, x, options)
    made = chains(recording)
    assert len(made) >= 2
    reason = "each of its output channels meets one input channel, so there is no rank to lower"
    assert f"depthwise.weight stays as it is: {reason}" in recording.notes
    for name, chain in made.items():
        module = model.get_submodule(name.removesuffix(".weight"))
        assert isinstance(module, nn.Conv2d)
        with torch.no_grad():
            module.weight.copy_(chain.dense().view_as(module.weight))
            if chain.shift is not None:
                module.bias = nn.Parameter(chain.shift if module.bias is None else module.bias + chain.shift)
    with torch.no_grad():
        expected = model.double()(x.double())
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_activations_are_the_better_in_a_model() -> None:
    model, x = filters()
    x = x * torch.tensor([1.0, 1, 1, 30, 30])[:, None, None]
    calibration = effc.calibrate(model, [x])
    errors = []
    for method in ("svd", "output"):
        torch._dynamo.reset()
        options = {"parameters": 0.6, "method": method, "calibration": calibration}
        errors.append(off(run(model, x, options)[0], model, x))
    assert errors[1] < 0.9 * errors[0]


@pytest.mark.parametrize("dynamic", [False, True])
def test_sizes(dynamic: bool) -> None:
    """``check`` compares each region with eager; images of one element, one column, and in another order of memory."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 40, 3, padding=1), nn.ReLU(), nn.Conv2d(40, 40, 3, padding=1, stride=2)).eval()
    options: dict[str, Any] = {"passes": {"low_rank": {"rank": 16}}, "check": True, "fallback": "error"}
    fast = torch.compile(model, backend="effc", dynamic=dynamic, options=options)
    with torch.no_grad():
        for shape in ((1, 3, 1, 1), (1, 3, 17, 1), (3, 3, 16, 33)):
            x = torch.randn(*shape)
            found = fast(x)
            assert found.shape == model(x).shape
            torch.testing.assert_close(fast(x.transpose(2, 3).contiguous().transpose(2, 3)), found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(32, 48, 3, padding=1), nn.ReLU(), nn.Conv2d(48, 32, 1)).eval()
    with torch.no_grad():
        model.get_parameter("0.weight").copy_(of_tucker(48, 32, 16, 16, 3, 3))
    model, x = model.to(dtype), torch.randn(2, 32, 9, 11, dtype=dtype)
    calibration = effc.calibrate(model, [x])
    found, recording = run(model, x, {"rank": 16, "method": "output", "calibration": calibration, "skip": ["2*"]})
    assert found.dtype == dtype
    assert chains(recording)["0.weight"].ranks == (16, 16)
    assert off(found, model, x) < 0.05


def test_autocast() -> None:
    model, x = filters()
    calibration = effc.calibrate(model, [x])
    fast = compiled(model, passes={"low_rank": {"rank_ratio": 0.5, "method": "output", "calibration": calibration}})
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = fast(x)
    assert found.dtype == torch.bfloat16
    assert bool(found.isfinite().all())


def test_new_values_have_the_ranks_of_the_old() -> None:
    model, x = filters()
    fast = compiled(model, passes={"low_rank": {"parameters": 0.5}})
    with torch.no_grad():
        fast(x)
        model.get_parameter("shared.weight").mul_(2)
        effc.refresh(model)
        found = fast(x)
        torch._dynamo.reset()
        torch.testing.assert_close(found, compiled(model, passes={"low_rank": {"parameters": 0.5}})(x))


def test_saved_and_loaded(tmp_path: Path) -> None:
    model, x = filters()
    options = {"passes": {"low_rank": {"parameters": 0.5}}}
    effc.save(model, x, tmp_path / "small", options=options)
    with torch.no_grad():
        assert torch.equal(effc.load(tmp_path / "small")(x), compiled(model, **options)(x))


# -- refusals -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("change", "low_rank", "text"),
    [
        ("", {"rank": 97}, r"rank=97 is above the full rank of .*, \[.*\]: ask for at most"),
        ("", {"parameters": 0.01}, "ranks of 16 keep 0.* of the parameters, more than parameters=0.01"),
        ("zeros", {"rank": 16}, r"shared\.weight: the weight holds zeros only"),
        ("nan", {"rank": 16}, r"shared\.weight: the weight holds NaN or infinity"),
    ],
)
def test_weights_that_cannot_be_factorized(change: str, low_rank: dict[str, Any], text: str) -> None:
    model, x = filters()
    with torch.no_grad():
        if change == "zeros":
            model.shared.weight.zero_()
        elif change == "nan":
            model.shared.weight[3, 4, 0, 1] = float("nan")
        with pytest.raises(Exception, match=text):
            compiled(model, passes={"low_rank": low_rank})(x)


def test_a_calibration_of_other_channels_is_refused() -> None:
    model, x = filters()
    calibration = effc.calibrate(model, [x])
    sites = {**calibration.sites, "first.weight": calibration.sites["shared.weight"]}
    options = LowRank(method="output", calibration=replace(calibration, sites=sites))
    spectra = Spectra({"first.weight": layer(model.first.weight.detach())}, options)
    with pytest.raises(effc.InputError) as caught:
        spectra.of(["first.weight"])
    assert str(caught.value) == "first.weight: its calibration has 72 channels and the weight 5: calibrate this model"


# -- plans ----------------------------------------------------------------------------------------------------------
def test_a_plan_with_filters_is_kept_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fix(monkeypatch, by_size)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1)).eval()
    with torch.no_grad():
        model.get_parameter("2.weight").copy_(of_tucker(64, 64, 16, 16, 3, 3))
    batches = [torch.randn(2, 3, 12, 12) for _ in range(2)]
    calibration = effc.calibrate(model, batches)
    options = {"passes": {"quantize": False, "low_rank": {"rank": 16, "method": "output", "calibration": calibration}}}
    plan = effc.plan(model, calibration, accuracy_budget=0.1, options=options)
    assert "2.weight" in plan.weights
    plan.save(tmp_path / "plan")
    assert effc.Plan.load(tmp_path / "plan") == plan
    with torch.no_grad():
        found = compiled(model, plan=str(tmp_path / "plan"))(batches[0])
        torch._dynamo.reset()
        assert torch.equal(found, compiled(model, plan=plan)(batches[0]))
    assert off(found, model, batches[0]) <= 0.1
