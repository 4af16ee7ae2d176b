"""What a day with a GPU is prepared for, without one: the tables' command, and the kernels of the tests that need it."""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import test_gpu_on_device as on_device
import torch
from gpu_cases import CASES, GpuCase
from gpu_interpreted import operands_of, sized
from gpu_programs import InterpretingGpu, code_of, host, watched
from gpu_reference import expectations

from effc.bench import models
from effc.bench.systems import ON
from effc.compiler.codegen.gpu.target import GpuTarget
from effc.compiler.ir.spec import KernelSpec
from effc.runtime.gpu.code import SpecCode
from effc.runtime.guard import Unchanged

_TOOLS = str(Path(__file__).resolve().parents[1] / "tools")
sys.path.append(_TOOLS)
tables: Any = importlib.import_module("gpu_tables")
kept: Any = importlib.import_module("gpu_table_kept")
rows: Any = importlib.import_module("gpu_table_rows")
bench: Any = importlib.import_module("gpu_table_bench")
programs: Any = importlib.import_module("gpu_table_models")
sys.path.remove(_TOOLS)


def test_rows_are_kept_and_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tables.main([str(tmp_path), "--dry-run", "--only", "rows"]) == 0
    text = (tmp_path / "tables.md").read_text()
    assert "| softmax f32 8192x4096 |" in text
    assert "- not measured yet: 5 of 5" in text, "of attention"
    monkeypatch.setattr(tables.subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    tables.main([str(tmp_path), "--dry-run", "--only", "rows"])
    assert (tmp_path / "tables.md").read_text() == text


def test_a_line_cut_short_costs_itself_alone(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    known = kept.Kept(path)
    known.begin("a")
    with path.open("a") as file:
        file.write('["b", "beg')  # the process was killed here
    known.fail_begun("its process ended")
    assert known.failed() == {"a": "its process ended"}
    assert known.rest(["a", "b"]) == ["b"]
    assert known.lines == 2


def test_a_table_that_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tables.main([str(tmp_path), "--only", "products,modles"])
    assert "--only: there are tests, products, epilogues," in capsys.readouterr().err


@pytest.mark.parametrize("piece", rows.PIECES)
def test_kernels_compute_what_they_are_compared_with(piece: str) -> None:
    """The first and the last of each table, at the size of a dry run."""
    known, place = rows.rows(piece, True), bench.Interpreted()
    assert len({row.name for row in known}) == len(known)
    for row in (known[0], known[-1]):
        found = row.run(place)
        assert len(found.microseconds) >= 2
        assert found.facts.get("difference", 0.0) < 2e-3


def _process(*lines: str) -> list[str]:
    """A command that runs ``lines``, in which ``keep`` is the file of a table."""
    head = "import sys, time, os; from pathlib import Path; from gpu_table_kept import Kept, Found"
    return [sys.executable, "-P", "-c", "\n".join([head, "keep = Kept(Path(sys.argv[1]))", *lines])]


def filled(folder: Path, command: list[str], *, seconds: float = 60.0, patience: float = 60.0) -> Any:
    known = kept.Kept(folder / "t.jsonl")
    wanted = tables.Table("t", ("a", "b", "c"), seconds, patience)
    command = [*command, str(known.path)]
    tables.fill(wanted, known, time.monotonic() + seconds, command, folder / "log")
    return known


def test_a_row_at_which_a_process_ends_costs_itself_alone(tmp_path: Path) -> None:
    lines = (
        "for row in keep.rest(['a', 'b', 'c']):",
        "    keep.begin(row)",
        "    os._exit(7) if row == 'b' else keep.finish(row, Found({'x': 2.0, 'y': 1.0}))",
    )
    found = filled(tmp_path, _process(*lines))
    assert set(found.found()) == {"a", "c"}
    assert found.failed() == {"b": "its process ended with 7"}
    text = kept.table("t", found, ("a", "b", "c"))
    assert "| a | 2.0 | 1.0 (2.00x) |" in text
    assert "| geometric mean |  | 2.00x |" in text
    assert "- b: its process ended with 7" in text


def test_a_row_that_hangs_is_given_up(tmp_path: Path) -> None:
    lines = ("(row, *_) = keep.rest(['a', 'b', 'c'])", "keep.begin(row)", "time.sleep(100)")
    found = filled(tmp_path, _process(*lines), patience=0.3)
    assert len(found.failed()) == 3
    assert set(found.failed().values()) == {"nothing was heard of it for 0 s"}


def test_what_the_time_does_not_reach_is_left_for_the_next_call(tmp_path: Path) -> None:
    found = filled(tmp_path, _process("keep.begin('a')", "time.sleep(100)"), seconds=3.0)
    assert (found.found(), found.failed(), found.rest(("a", "b"))) == ({}, {}, ["a", "b"])


def test_a_process_that_begins_no_row_is_not_started_for_ever(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = filled(tmp_path, _process("raise SystemExit(3)"))
    assert found.failed() == {}
    assert "t: its process ended with 3" in capsys.readouterr().out


def test_models_and_systems_are_known() -> None:
    for name, systems in programs.MODELS.values():
        assert name in models.ENTRIES | models.SIZES
        assert set(systems.split(",")) <= set(ON["cuda"])


def test_what_bench_measured_is_a_row(tmp_path: Path) -> None:
    file, latency = tmp_path / "m.json", {"median": 2e-3, "low": 1e-3, "high": 3e-3}
    ran = [{"system": name, "status": "ok", "latency": latency, "share": 0.25} for name in ("eager", "effc")]
    failed = {"system": "inductor", "status": "failed", "reason": "no compiler"}
    file.write_text(json.dumps({"measurements": [{"outcomes": [*ran, failed]}]}))
    assert programs.found_in(file) == kept.Found({"eager": 2000.0, "effc": 2000.0}, {"roofline, effc": 0.25})
    file.write_text(json.dumps({"measurements": [{"outcomes": [failed]}]}))
    with pytest.raises(RuntimeError, match="inductor: no compiler"):
        programs.found_in(file)


# -- the tests that need a GPU ----------------------------------------------------------------------------------------
class _Interpreting:
    """In the place of ``GpuBuilder``."""

    gpu = InterpretingGpu()

    def __init__(self, options: dict[str, Any], cache: None) -> None:
        pass

    def kernels(self, specs: Sequence[KernelSpec], name: torch.device) -> list[SpecCode]:
        return [code_of(spec, GpuTarget.named("sm_90+tma")) for spec in specs]

    def device(self, name: torch.device) -> InterpretingGpu:
        return self.gpu

    def unchanged(self) -> Unchanged:
        return host().unchanged


@pytest.fixture
def _interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_device, "GpuBuilder", _Interpreting)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda tensor: tensor)


@pytest.mark.usefixtures("_interpreted")
@pytest.mark.parametrize("case", CASES[::4], ids=lambda case: case.name)
def test_kernels_of_the_tests_on_a_device(case: GpuCase, monkeypatch: pytest.MonkeyPatch) -> None:
    small = GpuCase(case.name, case.small, case.small)
    monkeypatch.setattr(on_device, "compiled_cases", lambda: on_device.compiled([sized(case.small)]))
    with watched(_Interpreting.gpu):
        on_device.test_kernels_give_what_float64_gives(small)


@pytest.mark.parametrize("name", ["linear f16 1000x1001x999", "conv 3x3 f16 64 to 64", "mlp f16 50176x96x384x96"])
def test_what_kernels_of_many_points_are_held_to(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their first results and their last ones, and the same where these meet."""
    monkeypatch.setattr("gpu_reference._MOST_POINTS", 1 << 18)
    spec = sized(next(case.spec for case in CASES if case.name == name))
    first, last = expectations(spec, operands_of(spec))
    for operand, found in first.items():
        starts, ends = (~one[operand].isnan() for one in (first, last))
        assert starts[0]
        assert ends[-1]
        assert 0 < starts.count_nonzero() < found.numel() > ends.count_nonzero() > 0
        both = starts & ends
        torch.testing.assert_close(found[both], last[operand][both], rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("_interpreted")
def test_tilings_and_zeros_of_the_tests_on_a_device() -> None:
    with watched(_Interpreting.gpu):
        on_device.test_every_tiling_of_a_product((33, 70, 600))
        on_device.test_products_that_leave_out_zeros((16, 1))
