"""``effc.calibrate`` and the metrics: statistics against direct computation, refusals, files."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import effc
from effc.metrics import metric_of


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2)
        self.up = nn.Linear(8, 12)
        self.tied = nn.Linear(12, 8, bias=False)
        self.free = nn.Parameter(torch.randn(8, 5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(self.conv(x).mean((2, 3)))
        z: Tensor = self.tied(torch.relu(y)) @ self.free
        return z


def test_statistics_are_those_of_the_activations() -> None:
    model = Net().eval()
    batches = [torch.randn(n, 3, 9, 7) for n in (1, 4, 2)]
    found = effc.calibrate(model, batches, held_out=0)
    assert set(found.sites) == {"conv.weight", "up.weight", "tied.weight", "free"}
    pixels = torch.cat([b.movedim(1, -1).reshape(-1, 3) for b in batches])
    hidden = torch.cat([model.conv(b).mean((2, 3)) for b in batches])
    for name, rows in (("conv.weight", pixels), ("up.weight", hidden)):
        statistics = found.sites[name]
        assert statistics.rows == len(rows)
        np.testing.assert_array_equal(statistics.least, rows.amin(0).detach())
        np.testing.assert_array_equal(statistics.greatest, rows.amax(0).detach())
        np.testing.assert_array_equal(statistics.absmax, rows.abs().amax(0).detach())
        moment = (rows.double().T @ rows.double() / len(rows)).detach()
        assert statistics.second_moment is not None
        np.testing.assert_allclose(statistics.second_moment, moment, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(statistics.mean, rows.mean(0).detach(), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(statistics.mean_square, rows.square().mean(0).detach(), rtol=1e-5)
        assert statistics.sample.shape == (min(128, len(rows)), rows.shape[1])
        kept = {tuple(row) for row in statistics.sample.tolist()}
        assert kept <= {tuple(row) for row in rows.tolist()}
    weight = found.sites["tied.weight"]
    np.testing.assert_allclose(weight.weight_absmax, model.tied.weight.abs().amax(1).detach())
    assert found.sites["free"].weight_absmax.shape == (5,)


class Heads(nn.Module):
    """``query`` and ``key`` meet one activation; ``other`` meets it too, but ``x`` where that is large; ``late`` after it changed."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.other, self.late = (nn.Linear(6, n, bias=False) for n in (4, 5, 6, 7))

    def forward(self, x: Tensor) -> list[Tensor]:
        h = torch.tanh(x)
        first = [self.query(h), self.key(h), self.other(h if x.abs().max() < 100 else x)]
        return [*first, self.late(h.mul_(2))]


def test_weights_that_meet_one_activation_share_its_statistics(tmp_path: Path) -> None:
    batches = [torch.randn(5, 6), torch.randn(3, 6)]
    found = effc.calibrate(Heads().eval(), batches, held_out=0)
    found.save(tmp_path / "cal")
    for sites in (found.sites, effc.Calibration.load(tmp_path / "cal").sites):
        query, key, other, late = (sites[f"{name}.weight"] for name in ("query", "key", "other", "late"))
        for field in ("least", "greatest", "mean", "mean_square", "sample", "second_moment"):
            assert getattr(query, field) is getattr(key, field) is getattr(other, field)
        assert late.second_moment is not query.second_moment
        np.testing.assert_allclose(late.greatest, 2 * query.greatest)
    assert found.sites["query.weight"].weight_absmax is not found.sites["key.weight"].weight_absmax
    # The third call parts `other` from the two: each has what it met, no more.
    found = effc.calibrate(Heads().eval(), [*batches, torch.full((2, 6), 1000.0)], held_out=0)
    query, key, other = (found.sites[f"{name}.weight"] for name in ("query", "key", "other"))
    assert query.second_moment is key.second_moment
    assert [float(s.greatest.max()) for s in (query, other)] == [1.0, 1000.0]
    assert [s.rows for s in (query, key, other)] == [10, 10, 10]
    assert other.second_moment is not None
    assert query.second_moment is not None
    assert float(np.diagonal(other.second_moment).max()) > 1e5 > 10 > float(np.diagonal(query.second_moment).max())


def test_second_moments_are_optional(tmp_path: Path) -> None:
    found = effc.calibrate(Net().eval(), [torch.randn(2, 3, 9, 7)], second_moments=False)
    found.save(tmp_path / "cal")
    assert effc.Calibration.load(tmp_path / "cal") == found
    assert {s.second_moment for s in found.sites.values()} == {None}


def test_outputs_are_eagers_and_inputs_are_not_touched() -> None:
    class Counts(nn.Module):
        def forward(self, x: Tensor, cache: Tensor) -> dict[str, Tensor]:
            cache.add_(1)
            return {"y": x + cache}

    x, cache = torch.randn(3), torch.zeros(3)
    found = effc.calibrate(Counts().eval(), [(x, cache)])
    assert torch.equal(cache, torch.zeros(3))
    assert torch.equal(found.outputs[0]["y"], x + 1)
    assert torch.equal(found.batches[0][0][1], torch.zeros(3))


def test_named_arguments_and_the_limit() -> None:
    model = nn.Linear(3, 2).eval()
    endless = ({"input": torch.randn(2, 3)} for _ in iter(int, 1))
    found = effc.calibrate(model, endless, max_batches=3)
    assert len(found.batches) == 3
    assert torch.equal(found.outputs[1], model(found.batches[1][1]["input"]))


@pytest.mark.parametrize(
    ("batches", "text"),
    [
        ([], "there are no batches to calibrate with"),
        ([torch.randn(2, 3), torch.randn(2, 4)], r"does not take batch 1 \(tensors of shapes \[\[2, 4\]\]\)"),
        ([torch.tensor([[0.0, math.nan, 1.0]])], "batch 0 holds NaN"),
        ([torch.randn(0, 3)], r"batch 0 holds a tensor without elements, of shape \[0, 3\]"),
        ([3], "a batch is int: expected a tensor, a tuple or list"),
        ([()], "batch 0 holds no tensor"),
        ([(torch.randn(2, 3), object())], "a value of type object"),
    ],
)  # fmt: skip
def test_bad_batches(batches: list[Any], text: str) -> None:
    with pytest.raises(effc.InputError, match=text):
        effc.calibrate(nn.Linear(3, 2).eval(), batches)


def test_bad_models() -> None:
    with pytest.raises(effc.InputError, match=r"call model\.eval\(\) first"):
        effc.calibrate(nn.Linear(3, 2), [torch.randn(2, 3)])
    with pytest.raises(effc.InputError, match="takes a module, not function"):
        effc.calibrate(lambda x: x, [torch.randn(2, 3)])  # type: ignore[arg-type]


# -- equality and files -----------------------------------------------------------------------------------------------
def test_equal_where_the_content_is(tmp_path: Path) -> None:
    model, batches = Net().eval(), [torch.randn(2, 3, 9, 9)]
    one, same = effc.calibrate(model, batches), effc.calibrate(model, batches)
    other = effc.calibrate(model, [batches[0] + 1e-3])
    assert (one == same, one == other, hash(one) == hash(same)) == (True, False, True)
    one.save(tmp_path / "cal")
    again = effc.Calibration.load(tmp_path / "cal")
    assert again == one
    assert torch.equal(again.outputs[0], one.outputs[0])
    np.testing.assert_array_equal(again.sites["conv.weight"].sample, one.sites["conv.weight"].sample)


def test_dtypes_that_numpy_lacks_survive(tmp_path: Path) -> None:
    found = effc.calibrate(nn.Identity().eval(), [(torch.randn(2, 3).bfloat16(),), (torch.tensor([True]),)])
    found.save(tmp_path / "cal")
    again = effc.Calibration.load(tmp_path / "cal")
    assert [torch.equal(a, b) for a, b in zip(again.outputs, found.outputs, strict=True)] == [True, True]
    assert again.outputs[0].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (lambda data: data[:-64], "should have .* bytes, and has .*: it was cut short or edited"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "its digest is not that of its content"),
        (lambda data: data[:20], "was not written by this version|is damaged: its header cannot be read"),
        (lambda data: b"", "cannot be read"),
        (lambda data: data.replace(b"effc archive 1", b"effc archive 0"), "was not written by this version"),
        (lambda data: data.replace(b"calibration 7", b"calibration 2"), "it is of another kind or version of effc"),
    ],
)  # fmt: skip
def test_damaged_files(tmp_path: Path, edit: Callable[[bytes], bytes], text: str) -> None:
    path = tmp_path / "cal"
    effc.calibrate(nn.Linear(3, 2).eval(), [torch.randn(2, 3)]).save(path)
    path.write_bytes(edit(path.read_bytes()))
    with pytest.raises(effc.ArtifactError, match=text):
        effc.Calibration.load(path)


# -- metrics ----------------------------------------------------------------------------------------------------------
def test_a_file_with_more_batches_held_out_than_there_are(tmp_path: Path) -> None:
    found = effc.calibrate(nn.Linear(3, 2).eval(), [torch.randn(2, 3)] * 2)
    replace(found, held_out=2).save(tmp_path / "calibration")
    with pytest.raises(effc.ArtifactError, match=r"calibration does not hold .*2 of 2 batches held out"):
        effc.Calibration.load(tmp_path / "calibration")


def test_metrics_against_their_definitions() -> None:
    r, y, tokens = torch.randn(2, 7, 11), torch.randn(2, 7, 11), torch.randint(0, 11, (2, 7))
    references, outputs, batches = [r[:1], r[1:]], [y[:1], y[1:]], [(tokens[:1],), (tokens[1:],)]

    def value(name: str) -> float:
        return metric_of(name)(references, outputs, batches)

    assert value("relative_l2") == pytest.approx(float((y - r).norm() / r.norm()), rel=1e-5)
    assert value("top1_disagreement") == pytest.approx(float((y.argmax(-1) != r.argmax(-1)).float().mean()))
    p, q = r.double().softmax(-1), y.double().softmax(-1)
    assert value("kl") == pytest.approx(float((p * (p / q).log()).sum(-1).mean()))
    losses = [F.cross_entropy(t[:, :-1].reshape(-1, 11).double(), tokens[:, 1:].reshape(-1)) for t in (r, y)]
    assert value("perplexity") == pytest.approx(float(losses[1].exp() / losses[0].exp() - 1))
    for name in ("relative_l2", "top1_disagreement", "kl", "perplexity"):
        assert metric_of(name)(references, references, batches) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("name", ["relative_l2", "top1_disagreement", "kl", "perplexity"])
def test_nan_in_an_output_is_no_small_error(name: str) -> None:
    r, tokens = torch.randn(2, 7, 11), torch.randint(0, 11, (2, 7))
    y = r.clone()
    y[0, 0, 0] = math.nan
    assert math.isnan(metric_of(name)([r], [y], [(tokens,)]))


def test_metrics_refuse_what_they_cannot_measure() -> None:
    with pytest.raises(effc.InputError, match=r"needs batches of tokens \[batch, length >= 2\]"):
        metric_of("perplexity")([torch.randn(2, 5, 7)], [torch.randn(2, 5, 7)], [(torch.randn(2, 5),)])
    with pytest.raises(effc.InputError, match="outputs of other shapes than in the calibration"):
        metric_of("relative_l2")([torch.randn(2)], [torch.randn(3)], [()])
    with pytest.raises(effc.InputError, match="needs an output whose last dimension are classes"):
        metric_of("kl")([torch.randint(0, 3, (2, 2))], [torch.randint(0, 3, (2, 2))], [()])
