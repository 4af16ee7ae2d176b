"""Layers that are alike: one of them is lowered, and its kernels and price are those of all."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

import effc
from effc.compiler.capture.recording import Recording
from effc.compiler.ir.options import Options
from effc.compiler.ir.site import sites_of
from effc.passes.quantize import Quantize
from effc.planning import offers
from effc.planning.alike import examples, surroundings
from effc.planning.captured import Asked
from effc.planning.offers import Offers
from effc.planning.pricing import pricing
from effc.planning.trial import Trial
from effc.planning.units import units_of


class Deep(nn.Module):
    """Alike layers between a first and a last that are not."""

    def __init__(self, depth: int = 9) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(40, 64), nn.Linear(64, 56)
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        y: Tensor = self.last(x)
        return y


def test_the_middle_one_of_each_kind_serves_for_all() -> None:
    kinds = {"a": 1, "b": 2, "c": 1, "d": 1, "e": 2}
    assert examples(kinds) == {"a": "c", "b": "e", "c": "c", "d": "c", "e": "e"}
    assert examples({}) == {}


def test_few_of_alike_layers_are_lowered_and_all_are_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Deep().eval()
    trial = Trial(model, effc.calibrate(model, [torch.randn(33, 40) for _ in range(2)]))
    options = Options()
    plain = trial.compile(options)
    asked: list[Asked] = []
    lower = trial.lower

    def watched(found: Sequence[Asked]) -> list[Recording | None]:
        asked.extend(found)
        return lower(found)

    monkeypatch.setattr(trial, "lower", watched)
    found: Offers = offers.offers(trial, plain, options, [Quantize("int8")], pricing(options))
    (once,) = asked
    weights = {name for name, p in model.named_parameters() if p.dim() > 1}
    assert once.around is not None
    assert {"first.weight", "last.weight"} <= set(once.around) < weights
    assert {name for name, _ in found.weights} == weights
    seconds = {
        site: candidate.latency.seconds
        for site, (_, *others) in found.candidates.items()
        for candidate in others
        if candidate.latency is not None
    }
    assert len(seconds) == len(weights)
    inner = [unit for unit in units_of(plain) if unit.params & {f"layers.{i}.weight" for i in range(2, 7)}]
    assert len({unit.around for unit in inner}) == 1
    assert len({seconds[unit.site] for unit in inner}) == 1


def test_kernels_among_others_are_not_alike() -> None:
    model = Deep().eval()
    trial = Trial(model, effc.calibrate(model, [torch.randn(33, 40) for _ in range(2)]))
    sites = sites_of(trial.compile(Options()).recording.programs)
    around = dict(zip((site.param for site in sites), surroundings(sites), strict=True))
    assert around["layers.4.weight"] == around["layers.5.weight"]
    assert around["layers.0.weight"] != around["layers.4.weight"] != around["layers.8.weight"]
