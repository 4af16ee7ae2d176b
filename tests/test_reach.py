"""What a plan knows before it makes candidates: what factors lose at least, and what the model shows of an error."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

import effc
from effc.calibrating.calibration import Calibration
from effc.compiler.compress.inputs import Inputs
from effc.compiler.compress.low_rank.factorize import Spectra, asked_ranks, factorize
from effc.compiler.compress.low_rank.layer import Layer
from effc.compiler.compress.low_rank.least import Energies
from effc.compiler.compress.low_rank.ranks import Ranks
from effc.compiler.ir.options import Options
from effc.metrics import relative_l2
from effc.passes.low_rank import LowRank
from effc.planning.proxies import output_error
from effc.planning.sensitivity import Sensitivity, alike, between, spread
from effc.planning.trial import Trial

LAYERS = [
    (nn.Linear(48, 80), (48,)),
    (nn.Linear(96, 48), (96,)),
    (nn.Conv2d(48, 64, 1), (48, 5, 7)),
    (nn.Conv2d(40, 64, 3), (40, 6, 5)),
    (nn.Conv2d(64, 40, (1, 3)), (64, 4, 5)),
    (nn.Conv1d(64, 64, 3, groups=2), (64, 9)),
]


def seen(layer: nn.Module, shape: tuple[int, ...], mixed: float) -> Calibration:
    """Of all rows; channels of their inputs have a mean, and are ``mixed``."""
    mix = torch.eye(shape[0]) + mixed * torch.randn(shape[0], shape[0])
    batches = []
    for _ in range(2):
        x = torch.randn(40, *shape) * torch.rand(shape[0], *[1] * (len(shape) - 1)) + 0.3
        batches.append((x.movedim(1, -1) @ mix).movedim(-1, 1) if len(shape) > 1 else x @ mix)
    return effc.calibrate(layer.eval(), batches, rows=10_000, held_out=0)


@pytest.mark.parametrize("method", ["svd", "output"])
@pytest.mark.parametrize(
    ("layer", "shape"), LAYERS, ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else ""
)
def test_no_factors_lose_less(layer: nn.Module, shape: tuple[int, ...], method: str) -> None:
    for ratio, mixed in ((0.25, 0.3), (0.5, 0.0)):
        calibration = seen(layer, shape, mixed)
        weight = layer.get_parameter("weight").detach()
        ones, groups = (1,) * (weight.dim() - 2), layer.groups if isinstance(layer, nn.Conv1d | nn.Conv2d) else 1
        one = Layer(weight, ones, ones, groups)
        options = LowRank(rank_ratio=ratio, method=method, calibration=calibration)  # type: ignore[arg-type]
        choice = asked_ranks("weight", one, options)
        if choice is None:
            continue
        statistics = calibration.sites["weight"]
        least = Energies(one, Inputs.of(statistics, "weight")).least(choice[1])
        form = factorize([choice], Spectra({"weight": one}, options), {"weight": torch.float32})["weight"]
        error = output_error(form, weight.flatten(1), statistics, "weight")
        assert 0 < least <= error * (1 + 1e-4)
        if method == "output" and weight.dim() == 2:  # the best there is
            assert error == pytest.approx(least, rel=0.02)


def test_a_rough_bound_is_no_more_than_the_close_one() -> None:
    torch.manual_seed(3)
    for rows in (64, 256):
        layer = Layer(torch.randn(rows, 128))
        close = Energies(layer, None).least(Ranks("product", (32,)))
        rough = Energies(layer, None).least(Ranks("product", (32,)), enough=0.0)
        assert 0 < rough <= close < 1


def test_what_has_the_rank_loses_nothing() -> None:
    torch.manual_seed(4)
    layer = Layer(torch.randn(96, 32) @ torch.randn(32, 64))
    assert Energies(layer, None).least(Ranks("product", (32,))) < 1e-2
    assert Energies(layer, None).least(Ranks("product", (16,))) > 0.1
    assert Energies(Layer(torch.zeros(96, 64)), None).least(Ranks("product", (32,))) == 0


class Deep(nn.Module):
    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(64, 64), nn.Tanh()) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + 0.3 * layer(x)
        return x


def test_sensitivities_are_those_of_small_errors() -> None:
    """Measured and between: near to what another small error of each weight does."""
    torch.manual_seed(5)
    model = Deep(9).eval()
    trial = Trial(model, effc.calibrate(model, [torch.randn(32, 64) for _ in range(4)]))
    trial.compile(Options())
    sensitivity = Sensitivity(trial)
    runs = []
    model.register_forward_pre_hook(lambda *_: runs.append(1))
    found = {name: sensitivity.of(site, site.matrix(w)) for name, (site, w) in trial.sites().items()}
    assert len(found) == 9
    assert len(runs) == 4
    x = trial.calibration.batches[-1][0][0]
    for name, shown in found.items():
        changed = copy.deepcopy(model)
        weight = changed.get_parameter(name)
        before = weight.detach().clone()
        with torch.no_grad():
            weight.add_(0.01 * torch.randn_like(weight) * before.abs().mean())
            own = output_error(weight.detach(), before, sensitivity.calibration.sites[name], name)
            error = relative_l2([model(x)], [changed(x)], [x])
        assert shown == pytest.approx(error / own, rel=0.5)


def test_layers_that_are_alike() -> None:
    shapes = {"a.0.w": (4, 4), "b.w": (4, 4), "a.1.w": (4, 4), "a.2.w": (4, 8), "a.3.w": (4, 4)}
    assert alike(shapes)["a.1.w"] == ["a.0.w", "a.1.w", "a.3.w"]
    assert alike(shapes)["a.2.w"] == ["a.2.w"]
    assert alike(shapes)["b.w"] == ["b.w"]


def test_places_and_what_lies_between() -> None:
    assert spread(3, 4) == [0, 1, 2]
    assert spread(12, 4) == [0, 4, 7, 11]
    assert between([0, 2, 3], [1.0, 4.0, 5.0], 4) == pytest.approx([1.0, 2.0, 4.0, 5.0])
    assert between([0], [2.0], 1) == [2.0]
    assert between([0, 2], [0.0, 4.0], 3) == pytest.approx([0.0, 4.0, 4.0])
    assert between([0, 2, 4], [0.0, 0.0, math.inf], 5) == [0.0, 0.0, 0.0, 0.0, math.inf]


@pytest.mark.parametrize("bad", [math.inf, math.nan, 0.0])
@pytest.mark.parametrize("place", range(3))
def test_a_place_that_shows_nothing_leaves_its_neighbours_to_the_others(bad: float, place: int) -> None:
    values = [2.0, 2.0, 2.0]
    values[place] = bad
    found = between([0, 2, 4], values, 5)
    assert found[2 * place] == bad or math.isnan(bad)
    assert [f for i, f in enumerate(found) if i != 2 * place] == pytest.approx([2.0] * 4)
