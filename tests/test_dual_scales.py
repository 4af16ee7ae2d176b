"""Scales of two grains: the search against a slow one, bytes within their range, and products summed as integers over all groups."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from compress_cases import SIZES, weight_of_size
from test_compress_recipe import statistics
from test_quantize import Tied, codes_read, off, run, tied, weights_read
from torch import Tensor, nn
from torch.nn import functional as F

import effc
from effc.compiler.capture.recording import Recording
from effc.compiler.compress.clipping import grid_of
from effc.compiler.compress.dual import dual_grained
from effc.compiler.compress.grid import Grid
from effc.compiler.compress.nearest import nearest
from effc.compiler.compress.quantized import QuantizedWeight
from effc.compiler.compress.recipe import quantize
from effc.compiler.compress.rounding import LEAST_SCALE
from effc.compiler.ir.errors import OptionError
from effc.compiler.ir.quantization import Clipping, Recipe, Scheme

SCHEMES = [
    Scheme(weights, group, symmetric, "token", "dual")  # type: ignore[arg-type]
    for weights, group, symmetric in itertools.product(("int4", "int2"), (0, 1, 6), (True, False))
]


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()
    torch.manual_seed(7)


def weight_bytes(found: QuantizedWeight) -> Tensor:
    """Int64 [out, in]: codes less zero points, times the integers of their groups."""
    assert found.dual is not None
    codes = found.codes.long().reshape(*found.scales.shape, -1)
    zeros = 0 if found.zeros is None else found.zeros.long()[..., None]
    return ((codes - zeros) * found.dual.groups.long()[..., None]).reshape(found.codes.shape)


def errors(weight: Tensor, scheme: Scheme, scales: Tensor, zeros: Tensor, importance: Tensor) -> Tensor:
    """Squared errors [groups] of one row."""
    groups = weight.reshape(len(scales), -1)
    low, high = scheme.limits
    codes = ((groups / scales[:, None]).round() + zeros[:, None]).clamp(low, high)
    difference = (codes - zeros[:, None]) * scales[:, None] - groups
    return (difference.square() * importance.reshape(groups.shape)).sum(1)


def least_by_hand(weight: Tensor, grid: Grid, importance: Tensor) -> list[float]:
    """Of each row, the least error of the channel scales and integers that the search may choose."""
    found = []
    low, high = grid.scheme.limits
    for row in range(len(weight)):
        scales = grid.scales[row]
        zeros = torch.zeros_like(scales) if grid.zeros is None else grid.zeros[row].float()
        most = torch.tensor([127 // max(high - int(z), int(z) - low) for z in zeros])
        unit, tried = (scales / most).max(), []
        for i in range(17):
            channel = unit * (0.8 + 0.05 * i)
            pair = [
                errors(weight[row], grid.scheme, whole.clamp(min=1).minimum(most) * channel, zeros, importance)
                for whole in ((scales / channel).floor(), (scales / channel).ceil())
            ]
            tried.append(float(torch.minimum(*pair).sum()))
        found.append(min(tried))
    return found


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("clipping", ["max", "mse"])
def test_the_search_finds_the_least_error(scheme: Scheme, clipping: Clipping) -> None:
    weight = torch.randn(7, 24) * torch.rand(7, 24).add(0.1)
    for importance in (None, torch.rand(24) + 0.1):
        grid = grid_of(weight, scheme, clipping, importance)
        found = nearest(weight, dual_grained(weight, grid, importance))
        weights = torch.ones(24) if importance is None else importance
        error = ((found.stored() - weight).double().square() * weights).sum(1)
        expected = torch.tensor(least_by_hand(weight, grid, weights)).double()
        torch.testing.assert_close(error, expected, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_bytes_stay_within_their_range(scheme: Scheme, rounding: str) -> None:
    weight = torch.randn(9, 24) ** 3
    weight[:, :6] *= torch.logspace(-6, 3, 9)[:, None]
    found = quantize({"w": weight}, scheme, Recipe(rounding=rounding), statistics(24))["w"]  # type: ignore[arg-type]
    assert found.dual is not None
    assert found.dual.groups.dtype == torch.int8
    assert found.dual.groups.shape == found.scales.shape
    assert found.dual.channels.shape == (9, 1)
    assert int(found.dual.groups.min()) >= 1
    zeros = torch.zeros_like(found.dual.groups) if found.zeros is None else found.zeros
    for code in scheme.limits:
        assert int(((code - zeros.int()) * found.dual.groups.int()).abs().max()) <= 127
    expected = weight_bytes(found).double() * found.dual.channels.double()
    torch.testing.assert_close(found.stored().double(), expected, rtol=1e-7, atol=0)


@pytest.mark.parametrize("symmetric", [True, False])
def test_nearly_as_good_as_a_float_a_group(symmetric: bool) -> None:
    weight = torch.randn(32, 512) * torch.rand(32, 8).add(0.2).repeat_interleave(64, 1)

    def error(scheme: Scheme) -> float:
        found = quantize({"w": weight}, scheme, Recipe(clipping="mse"))["w"].stored()
        return float((found - weight).norm() / weight.norm())

    floats, channel = error(Scheme("int4", 64, symmetric)), error(Scheme("int4", 0, symmetric))
    assert error(Scheme("int4", 64, symmetric, "token", "dual")) < floats + 0.1 * (channel - floats)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_finite_weights_stay_finite(scheme: Scheme, size: float) -> None:
    weight = weight_of_size(size)
    found = nearest(weight, dual_grained(weight, grid_of(weight, scheme)))
    assert found.dual is not None
    assert float(found.dual.channels.min()) >= LEAST_SCALE
    assert bool(found.stored().isfinite().all())
    assert bool((found.stored()[1] == 0).all())
    assert int(weight_bytes(found).abs().max()) <= 127


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"weights": "int8", "activations": "token"}, "makes bytes of integers of fewer bits, which int8 is not: choose int4"),
        ({"weights": "nf4", "activations": "token"}, "which nf4 is not: choose int4 or int2"),
        ({"weights": "int4"}, "is for products with activations in int8: choose activations='token' or 'tensor'"),
    ],
)  # fmt: skip
def test_schemes_that_have_no_dual_scales(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(OptionError, match=text):
        Scheme(**arguments, scales="dual")
    with pytest.raises(effc.OptionError, match=text):
        effc.Options(passes={"quantize": {**arguments, "scales": "dual"}})


# -- compiled -------------------------------------------------------------------------------------------------------
def products(recording: Recording) -> list[str]:
    """Of each contraction, the dtypes of its factors in memory and that of the sum."""
    found = []
    for program, _ in recording.programs:
        kernels = [program.kernels[call.kernel] for call in program.calls]
        for spec in (stage for kernel in kernels for stage in kernel.stages or (kernel,)):
            sums = [i.dtype for i in spec.body if i.op == "contract"]
            loads = [i.dtype for i in spec.body if i.op == "load"][:2]
            found += [f"{'x'.join(loads)}->{dtype}" for dtype in sums]
    return found


class Layer(nn.Module):
    def __init__(self, n: int, k: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(n, k)), nn.Parameter(torch.randn(n))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


def in_integers(x: Tensor, found: QuantizedWeight, bias: Tensor) -> Tensor:
    """A layer whose rows are int8, summed in int64 and scaled in float64."""
    assert found.dual is not None
    scale = (x.abs().amax(-1, keepdim=True) * (1.0 / 127.0)).clamp(min=1e-12)
    codes = (x * scale.reciprocal()).round().clamp(-127, 127).long()
    sums = codes @ weight_bytes(found).T
    return sums.double() * scale.double() * found.dual.channels.double().T + bias.double()


@pytest.mark.parametrize("rows", [1, 33])
@pytest.mark.parametrize(("n", "k", "group"), [(1, 1024, 64), (17, 69, 23), (130, 96, 1), (33, 128, 0), (64, 192, 32)])
@pytest.mark.parametrize(("weights", "symmetric"), [("int4", True), ("int4", False), ("int2", False)])
def test_sums_are_exact(rows: int, n: int, k: int, group: int, weights: str, symmetric: bool) -> None:
    model = Layer(n, k).eval()
    with torch.no_grad():
        model.weight[0] = 3e4 * torch.sign(model.weight[0])
        if n > 2:
            model.weight[1] = 0
            model.weight[2] *= torch.logspace(-5, 0, k)
    x = torch.randn(rows + 1, 2 * k)[1:, 1 : k + 1]
    x[0] = x[0].sign()
    quantized = {"weights": weights, "group": group, "symmetric": symmetric, "activations": "token", "scales": "dual"}
    got, recording = run(model, x, quantized, check=True, fallback="error")
    (compressed,) = recording.compressed
    (stage,) = compressed.stages
    stored = stage.weights["weight"].form
    assert isinstance(stored, QuantizedWeight)
    expected = in_integers(x, stored, model.bias.detach())
    row = expected.abs().amax(1, keepdim=True)
    assert bool(((got.double() - expected).abs() <= 2e-6 * row).all())
    packed = rows == 1 and n > 1 and group != 1
    assert products(recording) == ["i8xi8->f32" if packed else "i8xi8->i32"]
    assert not [note for program, _ in recording.programs for note in program.notes]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_model_with_a_tied_embedding(symmetric: bool, dtype: torch.dtype) -> None:
    model, tokens = tied()
    quantized = {"weights": "int4", "group": 32, "symmetric": symmetric, "scales": "dual", "activations": "token"}
    found, recording = run(model.to(dtype), tokens, quantized, check=True, fallback="error")
    assert 0 < off(found, model, tokens) < 0.2
    assert codes_read(recording) == {"embedding.weight", "query.weight", "value.weight", "out.weight"}
    assert weights_read(recording) == {"query.bias", "out.bias"}
    assert products(recording) == ["i8xi8->i32"] * 3


def test_convolutions_and_calibrated_ranges() -> None:
    model = nn.Sequential(nn.Conv2d(16, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 50, 1)).eval()
    x = torch.randn(2, 16, 9, 7)
    calibration = effc.calibrate(model, [x, torch.randn_like(x)], held_out=0)
    quantized = {"weights": "int4", "group": 24, "activations": "tensor", "scales": "dual", "calibration": calibration}
    found, recording = run(model, x, quantized, check=True)
    assert 0 < off(found, model, x) < 0.25
    assert products(recording) == ["i8xi8->i32"] * 2


def test_after_a_change_the_new_weight_is_compressed() -> None:
    model, tokens = Tied().eval(), torch.randint(0, 100, (2, 7))
    options: dict[str, Any] = {"passes": {"quantize": {"weights": "int4", "scales": "dual", "activations": "token"}}}
    with torch.no_grad():
        fast = torch.compile(model, backend="effc", options=options)
        fast(tokens)
        model.query.weight.mul_(-2)
        effc.refresh(model)
        assert 0 < off(fast(tokens), model, tokens) < 0.25


def test_kept_in_a_folder(tmp_path: Path) -> None:
    model, tokens = tied()
    options: dict[str, Any] = {"passes": {"quantize": {"weights": "int4", "scales": "dual", "activations": "token"}}}
    effc.save(model, tokens, tmp_path / "model", options=options)
    with torch.no_grad():
        fast = torch.compile(model, backend="effc", options=options)
        assert torch.equal(effc.load(tmp_path / "model")(tokens), fast(tokens))


def test_parts_that_a_graph_holds() -> None:
    found = quantize({"w": torch.randn(8, 64)}, Scheme("int4", 16, False, "token", "dual"), Recipe())["w"]
    assert {role: part.dtype for role, part in found.parts().items()} == {
        "codes": torch.int8, "zeros": torch.int8, "group_scales": torch.int8, "channel_scales": torch.float32,
    }  # fmt: skip
