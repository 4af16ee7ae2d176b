"""``quantize``: recipes from calibration of a model to codes, FineQuant's groups, and input that it refuses."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import effc
from effc.compiler.compress.finequant import coarsened
from effc.compiler.compress.recipe import quantize
from effc.compiler.ir.calibration import Statistics
from effc.compiler.ir.errors import InputError, OptionError
from effc.compiler.ir.quantization import Recipe, Scheme, Weights


class Net(nn.Module):
    """Two weights that share their activation, with channels that depend on each other, and a convolution behind a ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(16, 48)
        self.query, self.key = nn.Linear(48, 24, bias=False), nn.Linear(48, 40, bias=False)
        self.conv = nn.Conv2d(6, 8, 3, bias=False)

    def forward(self, x: Tensor, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = self.mix(x)
        return self.query(hidden), self.key(hidden), self.conv(image.relu())


@pytest.fixture(scope="module")
def calibrated() -> tuple[Net, effc.Calibration]:
    torch.manual_seed(0)
    net = Net().eval()
    return net, effc.calibrate(net, [(torch.randn(100, 16), torch.randn(2, 6, 9, 9)) for _ in range(4)], held_out=0)


SCHEMES = [
    Scheme(weights, group, symmetric, scales=scales)  # type: ignore[arg-type]
    for weights, group, symmetric, scales in itertools.product(
        get_args(Weights), (0, 6), (True, False), ("float", "double")
    )
    if symmetric or weights != "nf4"
]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_every_recipe(calibrated: tuple[Net, effc.Calibration], scheme: Scheme) -> None:
    net, calibration = calibrated
    low, high = scheme.limits
    for together in (("query.weight", "key.weight"), ("conv.weight",)):
        weights = {name: net.get_parameter(name).detach() for name in together}
        statistics = calibration.sites[together[0]]
        for recipe in itertools.starmap(
            Recipe, itertools.product(("none", "awq", "smoothquant"), ("nearest", "gptq"), ("max", "percentile", "mse"))
        ):
            found = quantize(weights, scheme, recipe, statistics)
            assert list(found) == list(together)
            for name, weight in weights.items():
                one = found[name]
                assert one.codes.shape == (len(weight), weight[0].numel())
                assert low <= int(one.codes.min()) <= int(one.codes.max()) <= high
                assert (one.zeros is None) == scheme.symmetric
                assert (one.scale_codes is None) == (scheme.scales == "float")
                assert (one.smoothing is None) == (recipe.smoothing == "none")
                off = (one.dense() - weight.reshape(one.codes.shape)).norm() / weight.norm()
                assert float(off) < {8: 0.05, 4: 0.4, 2: 1.2}[scheme.bits]
            first, *others = (one.smoothing for one in found.values())
            assert all(torch.equal(s, first) if s is not None and first is not None else s is first for s in others)


def test_each_step_helps(calibrated: tuple[Net, effc.Calibration]) -> None:
    """Error of outputs on fresh inputs: AWQ, and GPTQ after it, are each better than what went before."""
    net, calibration = calibrated
    hidden = net.mix(torch.randn(500, 16)).detach()
    scheme = Scheme("int4", 12, symmetric=False)

    def error(recipe: Recipe) -> float:
        weights = {n: net.get_parameter(n).detach() for n in ("query.weight", "key.weight")}
        found = quantize(weights, scheme, recipe, calibration.sites["key.weight"])
        return sum(float((hidden @ (found[n].dense() - w).T).square().sum()) for n, w in weights.items())

    plain, compensated = error(Recipe()), error(Recipe("awq", "gptq", "mse"))
    assert error(Recipe("awq")) <= plain
    assert compensated < 0.3 * plain


def test_half_precision_and_strided_weights_are_taken_as_they_are() -> None:
    weight = torch.randn(12, 24)
    for other in (weight.bfloat16(), weight.T.contiguous().T, torch.cat([weight, weight], 1)[:, 24:]):
        found = quantize({"w": other}, Scheme("int4", 8), Recipe())["w"]
        expected = quantize({"w": other.float().contiguous()}, Scheme("int4", 8), Recipe())["w"]
        assert torch.equal(found.codes, expected.codes)
        assert found.scales.dtype == torch.float32


# -- FineQuant -------------------------------------------------------------------------------------------------------
def test_groups_are_fine_only_where_that_pays() -> None:
    scheme = Scheme("int4", 16)
    even = torch.sign(torch.randn(8, 128)) * (0.9 + 0.1 * torch.rand(8, 128))
    uneven = even * torch.logspace(0, -3, 128)
    assert coarsened(even, scheme).group == 0
    assert coarsened(uneven, scheme).group == 16
    assert coarsened(torch.cat([even[:, :64], even[:, 64:] / 3], 1), scheme).group == 64
    found = quantize({"a": even, "b": uneven}, scheme, Recipe(grouping="finequant"))
    assert [found["a"].scheme.group, found["b"].scheme.group] == [0, 16]
    assert [found["a"].scales.shape, found["b"].scales.shape] == [(8, 1), (8, 8)]


@pytest.mark.parametrize("size", [1, 7, 30, 64, 96])
def test_coarser_groups_divide_too(size: int) -> None:
    for group in [g for g in range(1, size + 1) if size % g == 0]:
        found = coarsened(torch.randn(4, size), Scheme("int4", group)).group
        assert found == 0 or (size % found == 0 and found % group == 0)
    assert coarsened(torch.zeros(4, size), Scheme("int4", 1)).group == (0 if size > 1 else 1)


# -- what is refused -------------------------------------------------------------------------------------------------
def statistics(channels: int, value: float = 1.0) -> Statistics:
    ones = np.full(channels, value, np.float32)
    return Statistics(-ones, ones, ones, ones, np.tile(ones, (3, 1)), None, 3, ones, ones)


@pytest.mark.parametrize(
    ("weight", "scheme", "recipe", "seen", "error", "text"),
    [
        (torch.full((2, 8), math.nan), Scheme(), Recipe(), None, InputError, "layer.0: the weight holds NaN, inf"),
        (torch.full((2, 8), -math.inf), Scheme("nf4"), Recipe(), None, InputError, "layer.0: the weight holds NaN, inf"),
        (torch.full((2, 8), 3e38), Scheme(), Recipe(), None, InputError, "layer.0: the weight holds NaN, infinity or more than 1e30"),
        (torch.ones(8), Scheme(), Recipe(), None, InputError, r"layer.0: a weight to quantize has dimensions .* not \[8\]"),
        (torch.ones(0, 8), Scheme(), Recipe(), None, InputError, r"layer.0: .* and elements, not \[0, 8\]"),
        (torch.ones(2, 8), Scheme("int4", 3), Recipe(), None, OptionError, "layer.0: groups of 3 do not divide its sum over 8 elements"),
        (torch.ones(2, 8), Scheme("int4", 16), Recipe(), None, OptionError, "layer.0: groups of 16 do not divide"),
        (torch.ones(2, 8), Scheme(), Recipe("awq"), None, OptionError, "layer.0: awq needs to know the activations: give a calib"),
        (torch.ones(2, 8), Scheme(), Recipe("smoothquant"), None, OptionError, "layer.0: smoothquant needs to know"),
        (torch.ones(2, 8), Scheme(), Recipe(rounding="gptq"), None, OptionError, "layer.0: gptq needs to know"),
        (torch.ones(2, 8), Scheme(), Recipe("awq"), statistics(7), InputError, "layer.0: its calibration has 7 channels and the weight 8"),
        (torch.ones(2, 8), Scheme(), Recipe("awq"), statistics(8, math.nan), InputError, "layer.0: the activations in .* hold NaN"),
        (torch.ones(2, 8), Scheme(), Recipe("awq"), statistics(8, math.inf), InputError, "layer.0: the activations in .* hold NaN"),
    ],
)  # fmt: skip
def test_bad_input(
    weight: Tensor, scheme: Scheme, recipe: Recipe, seen: Statistics | None, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        quantize({"layer.0": weight}, scheme, recipe, seen)


def test_a_recipe_that_is_none() -> None:
    with pytest.raises(OptionError, match="rounding is one of nearest, gptq, not 'up'"):
        Recipe(rounding="up")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="clipping is one of max, percentile, mse"):
        replace(Recipe(), clipping="hard")  # type: ignore[arg-type]
