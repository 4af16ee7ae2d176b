"""The learned model: it learns what depends on features, is judged on families that it has not seen, and refuses files that are not its
own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from test_costmodel import gemm
from trace_cases import MACHINE, TRACE

from effc import cli
from effc.compiler.ir.errors import ArtifactError, OptionError
from effc.compiler.ir.spec import KernelSpec
from effc.costmodel import features, roofline
from effc.costmodel.hardware import Hardware
from effc.costmodel.model import files
from effc.costmodel.model.dataset import Dataset, dataset
from effc.costmodel.model.evaluation import HELD, errors, held_out, parts_of, repeated, without
from effc.costmodel.model.folder import CARD
from effc.costmodel.model.predictor import Predictor, unsure, widening
from effc.costmodel.model.ranking import auroc, kendall
from effc.costmodel.model.training import train
from effc.costmodel.traces import Part, Trace, write

pytest.importorskip("lightgbm", reason="needs the extra 'costmodel'")

TILES = [(mr, nr) for mr in (1, 2, 4, 6, 8, 12) for nr in (16, 32, 64)]
#: Rounds that are enough for a law as simple as the one below.
ROUNDS = 80


def schedules(spec: KernelSpec) -> list[KernelSpec]:
    return [spec.with_schedule(mr=mr, nr=nr, order="panels", touch=0, unroll=4) for mr, nr in TILES]


def law(spec: KernelSpec, m: int, n: int, k: int) -> float:
    """Seconds: arithmetic with whole tiles, slower where a tile has few sums to hide latencies with, and what a call costs."""
    mr, nr = spec.schedule["mr"], spec.schedule["nr"]
    work = 2 * k * (-(-m // mr) * mr) * (-(-n // nr) * nr) / MACHINE.speed.flops
    return float(work * max(1.0, 8 / (mr * nr / 16)) ** 0.5 + roofline.OVERHEAD)


def records(family: str, sizes: list[tuple[int, int, int]]) -> Iterator[Trace]:
    for m, n, k in sizes:
        for at, spec in enumerate(schedules(gemm(m, n, k))):
            seconds = law(spec, m, n, k)
            times = {"median": seconds, "low": seconds, "high": seconds, "least": seconds}
            yield replace(
                TRACE, computation=f"{m} {n} {k}", family=family, subject=f"{m}x{n}x{k}", spec=json.dumps(spec.to_json()),
                symbols=(), own_choice=at == 0, **times,  # type: ignore[arg-type]
            )  # fmt: skip


@lru_cache(maxsize=1)
def part() -> Part:
    """Three families of sizes."""
    sizes = {
        "small": [(m, n, 64) for m in (5, 8, 13, 24) for n in (32, 64, 100, 128)],
        "wide": [(m, n, 256) for m in (4, 7, 16) for n in (256, 300, 512, 768)],
        "tall": [(m, n, 128) for m in (50, 64, 100, 128) for n in (48, 64, 200)],
    }
    return Part(MACHINE, tuple(t for family, listed in sizes.items() for t in records(family, listed)))


@lru_cache(maxsize=1)
def data() -> Dataset:
    return dataset([part()])


@lru_cache(maxsize=1)
def predictor() -> Predictor:
    return train(data(), rounds=ROUNDS)


# -- data -------------------------------------------------------------------------------------------------------------
def test_every_schedule_of_a_site_is_a_record() -> None:
    found = data()
    assert len(found) == len(part().traces)
    assert len(set(found.sites)) == len({t.computation for t in part().traces})
    assert found.own.sum() == len(set(found.sites))
    assert found.rows.shape == (len(found), len(features.COLUMNS))


def test_times_belong_to_their_features() -> None:
    found, column = data(), features.COLUMNS.index("log_rows")
    by_rows = {round(2 ** float(row[column]) - 1) for row in found.rows[found.families == "tall"]}
    assert by_rows == {50, 64, 100, 128}
    for trace in list(part().traces)[::37]:
        (row,) = features.matrix([(trace.kernel, ())], MACHINE, trace.threads)
        at = np.flatnonzero((found.rows == row).all(axis=1) | np.isclose(found.rows, row, equal_nan=True).all(axis=1))
        assert trace.median in found.seconds[at]


def test_the_same_kernel_measured_twice_counts_once_at_its_least() -> None:
    trace = part().traces[0]
    slower = replace(trace, median=2 * trace.median, high=2 * trace.median)
    found = dataset([Part(MACHINE, (slower, trace)), Part(MACHINE, (slower,))])
    assert found.seconds.tolist() == [trace.median]
    count, mean, median = repeated([Part(MACHINE, (slower, trace)), Part(MACHINE, (slower,))])
    assert [count, mean, median] == pytest.approx([2, 1.0, 1.0])


def test_other_machines_and_threads_are_other_sites() -> None:
    trace, other = part().traces[0], replace(MACHINE, name="another")
    found = dataset([Part(MACHINE, (trace, replace(trace, threads=1))), Part(other, (trace,))])
    assert len(set(found.sites)) == 3
    assert [m.name for m in found.machines] == [MACHINE.name, "another"]


def test_each_model_is_a_family() -> None:
    trace = part().traces[0]
    models = (replace(trace, family="net", subject=f"model:{n}", computation=n) for n in ("a.py:net", "b.py:net"))
    assert sorted(dataset([Part(MACHINE, (trace, *models))]).families) == [
        "model:a.py:net",
        "model:b.py:net",
        trace.family,
    ]


def test_what_teaches_nothing_is_left_out_and_counted() -> None:
    good = part().traces[0]
    broken = replace(good, spec="{}")
    noisy = replace(good, low=0.5 * good.median, high=1.5 * good.median)
    found = dataset([Part(MACHINE, (broken, noisy, good))])
    assert found.skipped == {"no spec": 1, "too wide a spread": 1}
    assert len(found) == 1
    with pytest.raises(OptionError, match=r"no record to learn from .*1 with no spec"):
        dataset([Part(MACHINE, (broken,))])


@pytest.mark.parametrize("dims", [[["x", "rows"]], [[None, "rows"]], []])
def test_a_record_that_has_no_features_costs_no_other(dims: list[object]) -> None:
    """Its text is JSON, and its kernel one that cannot be."""
    good = part().traces[0]
    broken = replace(part().traces[1], spec=json.dumps({**json.loads(part().traces[1].spec), "dims": dims}))
    found = dataset([Part(MACHINE, (good, broken))])
    assert found.skipped == {"no spec": 1}
    assert found.seconds.tolist() == [good.median]


# -- training and judging ---------------------------------------------------------------------------------------------
def test_it_learns_what_it_was_shown() -> None:
    low, median, high = predictor().seconds(data().rows)
    share = np.abs(median - data().seconds) / data().seconds
    assert share.mean() < 0.05
    assert (low <= median).all()
    assert (median <= high).all()


def test_training_is_the_same_for_the_same_seed() -> None:
    again = train(data(), rounds=ROUNDS)
    np.testing.assert_array_equal(again.seconds(data().rows), predictor().seconds(data().rows))


def test_latencies_of_kernels() -> None:
    kernels = [(spec, ()) for spec in schedules(gemm(100, 64, 128))]
    found = predictor().latencies(kernels, MACHINE, 2)
    assert [p.seconds for p in found] == pytest.approx([law(spec, 100, 64, 128) for spec, _ in kernels], rel=0.25)
    assert all(p.uncertainty >= 0 for p in found)
    assert predictor().latencies([], MACHINE, 2) == []
    assert unsure(replace(found[0], uncertainty=0.9))
    assert not unsure(replace(found[0], uncertainty=0.1))


@pytest.mark.parametrize("by", HELD)
def test_what_is_held_out_is_judged_beside_simpler_ways(by: str) -> None:
    judged = held_out(data(), (0,), rounds=ROUNDS, by=by)
    found = judged.errors
    assert set(found) == {"small", "wide", "tall", "all"}
    model, roof, random = (found["all"][who] for who in ("model", "roofline", "random"))
    assert model.records == len(data())
    assert model.mape < roof.mape
    assert model.regret < random.regret
    assert model.tau > random.tau + 0.3
    assert 0 <= model.within <= 1
    assert roof.covered != roof.covered, "a roof has no range"
    assert judged.predicted.shape == (len(data()),)


def test_no_kernel_that_is_judged_was_learned() -> None:
    for by in HELD:
        parts = parts_of(data(), by, 3)
        for part in np.unique(parts):
            test, rest = without(data(), parts, part)
            assert test.any()
            assert not set(data().sites[test]) & set(data().sites[rest])
            if by == "shape":
                assert not set(data().shapes[test]) & set(data().shapes[rest])


def test_ranges_are_widened_until_they_hold_what_they_promise() -> None:
    draw = np.random.default_rng()
    median = draw.uniform(1e-6, 1e-3, 5000)
    actual = median * np.exp2(draw.normal(size=5000))
    low, high = median / 1.1, median * 1.1
    factor = widening(actual, low, median, high)
    inside = (median * (low / median) ** factor <= actual) & (actual <= median * (high / median) ** factor)
    assert inside.mean() == pytest.approx(0.8, abs=0.001)  # by construction: 0.1 to 0.9 of these very times


def test_one_family_cannot_be_held_out() -> None:
    alone = data().only(data().families == "tall")
    with pytest.raises(OptionError, match="the family tall alone"):
        held_out(alone, (0,))


def test_too_few_records_teach_nothing() -> None:
    with pytest.raises(OptionError, match="10 records are too few"):
        train(data().only(np.arange(len(data())) < 10))


def test_errors_by_hand() -> None:
    found = data()
    exact = errors(found, found.seconds, found.seconds)
    assert [exact.mape, exact.within, exact.regret, exact.tau] == pytest.approx([0, 1, 0, 1])
    turned = errors(found, 1.2 * found.seconds, -found.seconds)
    assert turned.mape == pytest.approx(0.2)
    assert turned.within == 0
    assert turned.tau == pytest.approx(-1)
    worst = [
        found.seconds[found.sites == s].max() / found.seconds[found.sites == s].min() - 1 for s in set(found.sites)
    ]
    assert turned.regret == pytest.approx(np.mean(worst))


@pytest.mark.parametrize(
    ("a", "b", "tau"),
    [
        ([1, 2, 3], [1, 2, 3], 1.0),
        ([1, 2, 3], [3, 2, 1], -1.0),
        ([1, 2, 3, 4], [1, 3, 2, 4], 4 / 6),
        ([1, 1, 2], [1, 2, 3], 2 / math.sqrt(2 * 3)),
        ([1, 1], [1, 2], 0.0),
    ],
)
def test_kendall(a: list[float], b: list[float], tau: float) -> None:
    assert kendall(np.array(a, float), np.array(b, float)) == pytest.approx(tau)


@pytest.mark.parametrize(
    ("score", "true", "area"),
    [
        ([1, 2, 3, 4], [0, 0, 1, 1], 1.0),
        ([4, 3, 2, 1], [0, 0, 1, 1], 0.0),
        ([1, 1, 1, 1], [0, 1, 0, 1], 0.5),
        ([1, 3, 2, 4], [0, 0, 1, 1], 0.75),
        ([1, 2], [1, 1], math.nan),
    ],
)
def test_area_under_the_curve(score: list[float], true: list[int], area: float) -> None:
    assert auroc(np.array(score, float), np.array(true, bool)) == pytest.approx(area, nan_ok=True)


# -- files ------------------------------------------------------------------------------------------------------------
@pytest.fixture
def saved(tmp_path: Path) -> Path:
    files.save(tmp_path / "model", predictor(), data(), {})
    return tmp_path / "model"


def test_a_saved_model_predicts_the_same(saved: Path) -> None:
    loaded = files.load(saved)
    np.testing.assert_array_equal(loaded.predictor.seconds(data().rows), predictor().seconds(data().rows))
    assert loaded.card["families"] == {"small": 288, "wide": 216, "tall": 216}
    assert Hardware.from_json(loaded.card["machines"][0]) == MACHINE
    assert {p.suffix for p in saved.iterdir()} == {".txt", ".json"}


def test_an_edited_text_is_refused(saved: Path) -> None:
    path = saved / "latency.median.txt"
    text = path.read_text()
    at = text.index("leaf_value=") + len("leaf_value=")
    path.write_text(text[:at] + ("1" if text[at] != "1" else "2") + text[at + 1 :])
    with pytest.raises(ArtifactError, match=r"latency\.median\.txt is not the text that its card names"):
        files.load(saved)


def test_a_text_cut_short_is_refused(saved: Path) -> None:
    path = saved / "latency.low.txt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ArtifactError, match=r"latency\.low\.txt"):
        files.load(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 99}, "made for other features"),
        ({"widening": -1}, "no card of a cost model"),
        ({"widening": 10**400}, "no card of a cost model"),
        ({"texts": {"latency.median": {"bytes": math.inf, "sha256": ""}}}, "no card of a cost model"),
        ({"machines": [{**MACHINE.to_json(), "cores": -1}]}, "no card of a cost model"),
        ({"machines": [{}]}, "no card of a cost model"),
        ({"features": {"version": 99, "columns": []}}, "made for other features"),
        ({"texts": {}}, "no card of a cost model"),
    ],
)
def test_an_edited_card_is_refused(saved: Path, change: dict[str, object], message: str) -> None:
    card = json.loads((saved / CARD).read_text())
    (saved / CARD).write_text(json.dumps({**card, **change}))
    with pytest.raises(ArtifactError, match=message):
        files.load(saved)


def test_no_model_is_one_clear_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["costmodel", "show", str(tmp_path)]) == 1
    assert "there is no cost model in" in capsys.readouterr().err


# -- the command line -------------------------------------------------------------------------------------------------
def test_from_traces_to_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, part())
    model, figures = tmp_path / "model", tmp_path / "figures.json"
    common = ["--traces", str(tmp_path), "--workers", "1", "--rounds", "20"]
    assert cli.main(["costmodel", "train", "--out", str(model), *common]) == 0
    assert "a model of 720 records of 3 families" in capsys.readouterr().out
    assert cli.main(["costmodel", "show", str(model), "--top", "5"]) == 0
    out = capsys.readouterr().out
    assert "720 records: " in out
    assert sum(name in out for name in features.COLUMNS) >= 3
    picture = tmp_path / "plot.svg"
    assert cli.main(["costmodel", "show", str(model), "--plot", str(picture), "--target", "instructions"]) == 0
    drawn = ElementTree.parse(picture).getroot()
    assert len(drawn.findall(".//{*}circle")) == len(json.loads((model / CARD).read_text())["points"]["family"]) * 2
    assert cli.main(["costmodel", "show", str(model), "--target", "speed"]) == 1
    assert "--target speed: the model has latency.low" in capsys.readouterr().err
    assert cli.main(["costmodel", "eval", "--seeds", "1", "--json", str(figures), *common]) == 0
    out = capsys.readouterr().out
    assert "nothing was measured twice" in out
    assert "for the features of a candidate" in out
    held = json.loads(figures.read_text())
    assert all(0 < seconds < 1 for seconds in held["seconds"])
    assert set(held["held_out"]) == set(held["code"]) == set(HELD)
    assert set(held["held_out"]["family"]) == set(held["code"]["shape"]) == {"small", "wide", "tall", "all"}
