"""Adapting a model to another machine: few records teach it what is different there."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from test_latency_model import ROUNDS, data, part, predictor
from trace_cases import MACHINE

from effc import cli
from effc.compiler.ir.errors import OptionError
from effc.costmodel.model import files
from effc.costmodel.model.dataset import Dataset, dataset
from effc.costmodel.model.folder import CARD
from effc.costmodel.model.transfer import adapted, sampled
from effc.costmodel.traces import Part, write

pytest.importorskip("lightgbm", reason="needs the extra 'costmodel'")


def elsewhere() -> Part:
    """The same kernels on a machine that is slower at everything, and more so in wide tiles."""
    machine = replace(MACHINE, name="elsewhere")
    traces = []
    for trace in part().traces:
        factor = 1.7 * (1.3 if trace.kernel.schedule["nr"] == 64 else 1.0)
        times = {name: factor * getattr(trace, name) for name in ("least", "low", "median", "high")}
        traces.append(replace(trace, **times))
    return Part(machine, tuple(traces))


@lru_cache(maxsize=1)
def other() -> Dataset:
    return dataset([elsewhere()])


def test_few_records_teach_what_is_different() -> None:
    chosen, rest = sampled(other(), 32, 0)
    found, before, after = adapted(predictor(), chosen, rest)
    assert before is not None
    assert after is not None
    assert after.mape < 0.15 < 0.3 < before.mape
    assert after.covered > 0.6
    np.testing.assert_array_equal(found.seconds(rest.rows), adapted(predictor(), chosen, rest)[0].seconds(rest.rows))


def test_an_adapted_model_is_not_adapted_again() -> None:
    chosen, rest = sampled(other(), 32, 0)
    found, _, _ = adapted(predictor(), chosen, rest)
    with pytest.raises(OptionError, match="adapt the one that it was made from"):
        adapted(found, chosen, rest)


def test_a_sample_holds_many_kernels_of_each_family() -> None:
    chosen, rest = sampled(other(), 45, 1)
    assert len(chosen) == 45
    assert not set(chosen.sites) & set(rest.sites)
    kernels = len(set(other().sites))
    assert len(set(chosen.sites)) == min(45, kernels)
    assert set(chosen.families) == set(other().families)


def test_all_records_leave_none_to_be_judged_by() -> None:
    chosen, rest = sampled(other(), len(other()), 0)
    _, before, after = adapted(predictor(), chosen, rest)
    assert before is None
    assert after is None


@pytest.mark.parametrize("count", [0, 5, 100_000])
def test_a_wrong_number_of_samples_is_one_clear_error(count: int) -> None:
    with pytest.raises(OptionError, match="--samples must be between 20 and"):
        sampled(other(), count, 0)


def test_the_command_adapts_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files.save(tmp_path / "base", predictor(), data(), {})
    (tmp_path / "traces").mkdir()
    write(tmp_path / "traces", elsewhere())
    common = ["--traces", str(tmp_path / "traces"), "--workers", "1", "--rounds", str(ROUNDS)]
    command = ["costmodel", "train", *common, "--out", str(tmp_path / "new")]
    assert cli.main([*command, "--from", str(tmp_path / "base"), "--samples", "32"]) == 0
    out = capsys.readouterr().out
    assert "adapted by 32 records" in out
    assert "all, by as it was" in out
    card = json.loads((tmp_path / "new" / CARD).read_text())
    assert card["adapted"]["records"] == 32
    assert card["machines"][0]["name"] == "elsewhere"
    assert files.load(tmp_path / "new").predictor.seconds(other().rows[:3])
    assert cli.main([*command, "--samples", "60"]) == 1
    assert "give --from too" in capsys.readouterr().err
