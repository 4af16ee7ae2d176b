"""One-shot pruning: what it keeps of a layer's output, against plain magnitudes and against the definition; input that it refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from test_sparsity_patterns import holds, units
from torch import Tensor, nn

import effc
from effc.compiler.compress.compensation import Compensation
from effc.compiler.compress.inputs import Inputs, by_channel
from effc.compiler.compress.pruning.masks import laid_back, laid_out
from effc.compiler.compress.pruning.prune import prune
from effc.compiler.compress.pruning.sparsegpt import sparsegpt
from effc.compiler.ir.calibration import Statistics
from effc.compiler.ir.errors import InputError, OptionError
from effc.compiler.ir.pattern import Pattern
from effc.passes.sparsity import Method

METHODS: tuple[Method, ...] = get_args(Method)
PATTERNS = ["unstructured", "2:4", "1:4", "3:5", "1x16", "4x1", "16x1", "8x4", "4xkernel"]


def statistics_of(rows: Tensor) -> Statistics:
    moment = (rows.T @ rows / len(rows)).numpy()
    least, greatest = rows.amin(0).numpy(), rows.amax(0).numpy()
    none = np.zeros(0, np.float32)
    return Statistics(
        least,
        greatest,
        rows.mean(0).numpy(),
        moment.diagonal().copy(),
        rows[:64].numpy(),
        moment,
        len(rows),
        none,
        none,
    )


def activations(rows: int, channels: int, seed: int = 0) -> Tensor:
    """Channels that share most of what they say, a few of them far larger: what language models show."""
    g = torch.Generator().manual_seed(seed)
    shared = torch.randn(rows, channels // 4, generator=g) @ torch.randn(channels // 4, channels, generator=g)
    found = shared + 0.5 * torch.randn(rows, channels, generator=g)
    found[:, ::17] *= 10
    return found


def output_error(weight: Tensor, found: Tensor, rows: Tensor) -> float:
    """Squared error of the output as a share of its square; each position of a window meets ``rows``."""
    exact, off = (by_channel(w.flatten(1).double(), rows.shape[1]) @ rows.double().T for w in (weight, found - weight))
    return float(off.square().sum() / exact.square().sum())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("text", PATTERNS)
@pytest.mark.parametrize("shape", [(48, 80), (32, 160), (16, 80, 3, 3)])
def test_zeros_lie_by_the_pattern_in_the_share_that_was_asked(
    method: Method, text: str, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    pattern, weight = Pattern.parse(text), torch.randn(shape)
    statistics = statistics_of(activations(300, shape[1]))
    for sparsity in [pattern.sparsity] if pattern.sparsity else [0.3, 0.9]:
        found = prune({"w": weight}, pattern, sparsity, method, statistics)["w"]
        assert found.shape == weight.shape
        assert holds(found, text)
        zeros = float((found == 0).double().mean())
        assert abs(zeros - sparsity) <= 0.5 / units(shape, pattern) + 1e-9
        if method != "sparsegpt":
            assert torch.equal(found[found != 0], weight[found != 0])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("text", PATTERNS)
@pytest.mark.parametrize("shape", [(96, 160), (32, 80, 3, 3)])
def test_output_error_on_fresh_activations(seed: int, text: str, shape: tuple[int, ...]) -> None:
    """Wanda has less than half of what magnitudes have, SparseGPT less than 0.7 of Wanda's."""
    torch.manual_seed(seed)
    pattern, weight = Pattern.parse(text), torch.randn(shape)
    rows = activations(3000, shape[1], seed)
    sparsity = pattern.sparsity or 0.5
    errors = {
        method: output_error(
            weight, prune({"w": weight}, pattern, sparsity, method, statistics_of(rows[:2000]))["w"], rows[2000:]
        )
        for method in METHODS
    }
    assert errors["wanda"] < 0.5 * errors["magnitude"], errors
    assert errors["sparsegpt"] < 0.7 * errors["wanda"], errors


# -- SparseGPT against its definition -----------------------------------------------------------------------------
def by_definition(weight: Tensor, inputs: Inputs, n: int, m: int) -> Tensor:
    """In float64, channel by channel: after each the best change of all that are left, by solving least squares anew."""
    moment = inputs.moment.double()
    channels = len(moment)
    damped = moment + 0.01 * moment.diagonal().mean() * torch.eye(channels, dtype=torch.float64)
    rest = weight.double().clone()
    mask = torch.zeros(weight.shape, dtype=torch.bool)
    for i in range(channels):
        if i % m == 0:
            # Of each channel of the group: its cost once those behind it make up for it.
            costs = [rest[:, c].square() / torch.linalg.inv(damped[c:, c:])[0, 0].double() for c in range(i, i + m)]
            mask[:, i : i + m].scatter_(1, torch.stack(costs, 1).topk(n, dim=1).indices, True)
        error = rest[:, i] * (~mask[:, i]).double()
        rest[:, i] -= error
        left = list(range(i + 1, channels))
        if left:  # minimize (-error e_i + d)ᵀ H (-error e_i + d) over d in the channels left
            rest[:, left] += error[:, None] * torch.linalg.solve(damped[left][:, left], damped[left, i])
    return rest


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 5), (7, 15)])
def test_sparsegpt_is_its_definition(n: int, m: int) -> None:
    torch.manual_seed(0)
    weight, inputs = torch.randn(9, 60), Inputs.of(statistics_of(activations(500, 60)), "w")
    found = sparsegpt(weight[:, None], Pattern.of_each(n, m), 1 - n / m, Compensation.of(inputs, ordered=False))[:, 0]
    expected = by_definition(weight, inputs, n, m)
    assert torch.equal(found != 0, expected != 0)
    assert torch.allclose(found.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3, 127, 128, 129, 257])
def test_any_number_of_channels(channels: int) -> None:
    """Blocks of 128 end anywhere."""
    torch.manual_seed(0)
    weight, rows = torch.randn(24, channels), torch.randn(900, channels)
    rows = rows + rows[:, :1]
    found = prune({"w": weight}, Pattern.unstructured(), 0.6, "sparsegpt", statistics_of(rows))["w"]
    assert abs(float((found == 0).double().mean()) - 0.6) <= 0.5 / weight.numel() + 1e-9
    plain = prune({"w": weight}, Pattern.unstructured(), 0.6)["w"]
    assert output_error(weight, found, rows) <= (0.9 if channels > 4 else 1.2) * output_error(weight, plain, rows)


def test_convolutions_are_linear_ones_of_more_rows() -> None:
    torch.manual_seed(0)
    weight, statistics = torch.randn(6, 16, 3, 3), statistics_of(activations(400, 16))
    rows = laid_out(weight).reshape(54, 16)
    for method in METHODS:
        for text in ("unstructured", "2:4", "1x8"):
            pattern = Pattern.parse(text)
            found = prune({"w": weight}, pattern, 0.5, method, statistics)["w"]
            if method == "wanda" and text != "2:4":
                continue  # compares the elements of an output, which are those of nine rows
            alone = prune({"w": rows}, pattern, 0.5, method, statistics)["w"]
            assert torch.equal(found, laid_back(alone.reshape(6, 9, 16), weight.shape))


# -- odd input ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
@pytest.mark.parametrize("text", ["unstructured", "2:4", "4x1", "1x8"])
def test_channels_that_meet_nothing_go_first(method: Method, text: str) -> None:
    """Half of the channels were 0 in calibration, whole groups and blocks of them: they go, and nothing else is lost."""
    torch.manual_seed(0)
    rows, weight = activations(400, 64), torch.randn(24, 64)
    dead = torch.arange(64) % 4 < 2 if text == "2:4" else torch.arange(64) // 8 % 2 == 0
    rows[:, dead] = 0
    pattern = Pattern.parse(text)
    found = prune({"w": weight}, pattern, 0.5, method, statistics_of(rows))["w"]
    assert bool(found.isfinite().all())
    assert not found[:, dead].any()
    assert torch.allclose(found[:, ~dead], weight[:, ~dead], atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "rows", [torch.zeros(5, 16), torch.randn(1, 16), torch.full((4, 16), 1e-20), torch.randn(3, 16) * 1e12]
)
@pytest.mark.parametrize("size", [1e-38, 1.0, 1e30])
@pytest.mark.parametrize("text", ["unstructured", "2:4", "4x4"])
def test_inputs_that_say_little(method: Method, rows: Tensor, size: float, text: str) -> None:
    """Fewer rows than channels, all equal, or nothing at all; weights of any size."""
    torch.manual_seed(0)
    weight = torch.randn(8, 16).clamp(-1, 1) * size
    found = prune({"w": weight}, Pattern.parse(text), 0.5, method, statistics_of(rows))["w"]
    assert bool(found.isfinite().all())
    assert float((found == 0).double().mean()) == 0.5


@pytest.mark.parametrize("method", METHODS)
def test_zeros_that_are_there_count(method: Method) -> None:
    torch.manual_seed(0)
    weight = torch.randn(32, 64) * (torch.rand(32, 64) > 0.3)
    found = prune({"w": weight}, Pattern.unstructured(), 0.5, method, statistics_of(activations(300, 64)))["w"]
    assert 0.5 <= float((found == 0).double().mean()) < 0.52


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes_and_layouts(dtype: torch.dtype) -> None:
    weight = torch.randn(16, 32, dtype=dtype)
    statistics = statistics_of(activations(200, 32))
    for method in METHODS:
        found = prune({"w": weight}, Pattern.parse("2:4"), 0.5, method, statistics)["w"]
        assert found.dtype == torch.float32
        other = torch.empty(33, 17, dtype=dtype).T[1:, 1:].copy_(weight)
        assert torch.equal(prune({"w": other}, Pattern.parse("2:4"), 0.5, method, statistics)["w"], found)


def test_the_model_is_left_as_it_is() -> None:
    weight = nn.Parameter(torch.randn(16, 32))
    before = weight.detach().clone()
    for method in METHODS:
        prune({"w": weight}, Pattern.unstructured(), 0.5, method, statistics_of(activations(200, 32)))
    assert torch.equal(weight.detach(), before)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("weight", "text"),
    [
        (torch.full((8, 16), float("nan")), "layer.7.up: the weight holds NaN, infinity or more than 1e30"),
        (torch.full((8, 16), float("inf")), "layer.7.up: the weight holds NaN, infinity"),
        (torch.full((8, 16), -2e30), "layer.7.up: the weight holds NaN, infinity or more than 1e30"),
        (torch.zeros(8, 16), "layer.7.up: all of the weight is 0"),
        (torch.zeros(0, 16), "layer.7.up: a weight to prune has dimensions [out, channels…] and elements, not [0, 16]"),
        (torch.zeros(16), "layer.7.up: a weight to prune has dimensions"),
    ],
)
def test_weights_that_cannot_be_pruned(method: Method, weight: Tensor, text: str) -> None:
    with pytest.raises(InputError) as caught:
        prune({"layer.7.up": weight}, Pattern.parse("2:4"), 0.5, method, statistics_of(torch.randn(9, 16)))
    assert str(caught.value).startswith(text)


def test_a_pattern_that_does_not_divide() -> None:
    with pytest.raises(OptionError) as caught:
        prune({"layer.7.up": torch.randn(8, 18)}, Pattern.parse("2:4"), 0.5)
    assert str(caught.value) == (
        "layer.7.up: the sparsity pattern '2:4' does not divide a weight of shape [8, 18]: 18 input channels are no multiple of 4: "
        "choose another pattern, or leave this layer out"
    )


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_wrong_calibrations(method: Method) -> None:
    weights = {"q": torch.randn(8, 16), "k": torch.randn(4, 16)}
    half, right = Pattern.parse("2:4"), statistics_of(torch.randn(9, 16))
    with pytest.raises(OptionError, match=f"q, k: {method} needs to know the activations: give a calibration"):
        prune(weights, half, 0.5, method)
    with pytest.raises(InputError, match="q: its calibration has 12 channels and the weight 16: calibrate this model"):
        prune(weights, half, 0.5, method, statistics_of(torch.randn(9, 12)))
    for value in (float("nan"), float("inf")):
        spoiled = right.least.copy()
        spoiled[3] = value
        with pytest.raises(InputError, match="q, k: the activations in calibration hold NaN or infinity"):
            prune(weights, half, 0.5, method, replace(right, least=spoiled))


def test_what_calibrate_returns_prunes_a_model() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 16)).eval()
    calibration = effc.calibrate(model, [torch.randn(200, 32)])
    x = torch.randn(100, 32)
    errors = {}
    with torch.no_grad():
        exact, parameter = model(x), model.get_parameter("2.weight")
        weight = parameter.clone()
        for method in METHODS:
            found = prune({"2.weight": weight}, Pattern.parse("2:4"), 0.5, method, calibration.sites["2.weight"])
            parameter.copy_(found["2.weight"])
            errors[method] = float((model(x) - exact).norm() / exact.norm())
    assert errors["sparsegpt"] < errors["wanda"] < errors["magnitude"]
