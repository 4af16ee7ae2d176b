"""The command line: what it prints, and what it says of a mistake."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from effc import cli
from effc.cli import target
from effc.cli.timing import Latency, race
from effc.compiler import opt
from effc.compiler.ir.errors import OptionError
from effc.runtime.cache import Cache

MODEL = """
import torch

def model():
    return torch.nn.ReLU(), (torch.ones(3),)

def alone():
    return torch.nn.ReLU()
"""


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    path = tmp_path / "a_model.py"
    path.write_text(MODEL)
    return path


def test_a_target_is_a_function_in_a_file(model_file: Path) -> None:
    model, inputs = target.load(f"{model_file}:model")
    assert torch.equal(model(*inputs), torch.ones(3))


def test_a_target_is_a_function_of_a_module(model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model_file.parent)
    assert len(target.load("a_model:model")) == 2


def test_models_of_the_bench_are_targets() -> None:
    model, (x,) = target.load("effc.bench.zoo:mlp")
    assert model(x).isfinite().all()
    with pytest.raises(OptionError, match="no function 'lenet'"):
        target.load("effc.bench.zoo:lenet")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{file}", "does not name a model; write MODULE:FUNCTION"),
        ("{file}:", "does not name a model"),
        ("{file}:modle", "has no function 'modle'"),
        ("{file}:alone", "returned ReLU; it must return (model, inputs)"),
        ("missing.py:model", "there is no file missing.py"),
        ("effc.nowhere:model", "no module is named 'effc.nowhere'"),
    ],
)
def test_a_wrong_target_is_one_clear_error(
    text: str, message: str, model_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["explain", text.format(file=model_file)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("effc: error: ")
    assert message in err
    assert len(err.splitlines()) == 1


def test_options_are_literals_or_text() -> None:
    assert target.options(["fallback=error", "check=True", "passes={'a': False}"]) == {
        "fallback": "error",
        "check": True,
        "passes": {"a": False},
    }
    with pytest.raises(OptionError, match="'check' is not an option; write NAME=VALUE"):
        target.options(["check"])


def test_an_unknown_option_of_effc_is_one_clear_error(model_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", f"{model_file}:model", "-o", "fallbak=error"]) == 1
    assert "unknown option 'fallbak': did you mean 'fallback'?" in capsys.readouterr().err


def test_explain_prints_and_writes_the_report(
    model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["explain", f"{model_file}:model", "--json", str(tmp_path / "report.json")]) == 0
    assert "1 region" in capsys.readouterr().out
    assert (tmp_path / "report.json").read_text().startswith("{")


def test_explain_times_kernels_and_draws_the_waterline(
    model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "water.svg"
    assert cli.main(["explain", f"{model_file}:model", "--rounds", "1", "--waterline", str(picture)]) == 0
    shown = capsys.readouterr().out
    assert "a call takes" in shown
    assert "block by block: ceiling" in shown
    assert picture.read_text().startswith("<svg")


def test_the_cache_is_shown_and_emptied(cache_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Cache().put("objects", "abcdef", b"code" * 1000)
    assert cli.main(["cache", "info"]) == 0
    shown = capsys.readouterr().out.split("\n")
    assert shown[0].split() == ["folder", str(cache_dir)]
    assert ["objects", "1"] in [line.split() for line in shown]
    assert cli.main(["cache", "clear"]) == 0
    assert str(cache_dir) in capsys.readouterr().out
    assert Cache().info().size == 0


def test_a_cache_that_is_not_a_folder_is_one_clear_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert cli.main(["cache", "info", "--dir", str(tmp_path / "file")]) == 1
    assert "cannot be used" in capsys.readouterr().err


def test_a_subcommand_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([])
    assert caught.value.code == 2
    assert "SUBCOMMAND" in capsys.readouterr().err


def test_the_demonstration_refuses_no_rounds(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", "--rounds", "1"]) == 1
    assert "--rounds at least 2" in capsys.readouterr().err


@pytest.mark.slow
def test_the_demonstration_compares_and_reports(cache_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", "--rounds", "2"]) == 0
    out = capsys.readouterr().out
    assert "100.0 % compiled" in out
    errors = [re.split(r"\s*│\s*", line)[5] for line in out.splitlines() if line.startswith(("│ eager", "│ effc"))]
    eager, ours = map(float, errors)
    assert ours <= 2 * eager


def test_rivals_take_turns() -> None:
    order: list[str] = []
    rounds = list(race({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 4))
    assert order == ["a", "b", "b", "a", "a", "b", "b", "a"]
    assert all(set(r) == {"a", "b"} and min(r.values()) >= 0 for r in rounds)


def test_latency_is_median_and_quartiles() -> None:
    assert Latency.of([3.0, 1.0, 2.0, 5.0, 4.0]) == Latency(3.0, 1.5, 4.5)


def test_opt_reads_standard_input_and_writes_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("func.func private @f()"))
    assert opt.main(["-", "-o", str(tmp_path / "out.mlir")]) == 0
    assert "func.func private @f()" in (tmp_path / "out.mlir").read_text()


def test_opt_lists_every_registered_pass(capsys: pytest.CaptureFixture[str]) -> None:
    assert opt.main(["--list"]) == 0
    out = capsys.readouterr().out
    known = opt.passes()
    assert {line.split(":")[0] for line in out.splitlines() if not line.startswith(" ")} == set(known) or not known
    assert known or "MLIR's are written mlir:NAME" in out
