"""Option ``trace``: what a model's runs add to a folder of traces, and that nothing about it stops the model."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from exactness import assert_exact
from torch import nn

import effc
from effc import tracing
from effc.compiler.ir.equality import computation
from effc.compiler.ir.spec import KernelSpec
from effc.costmodel.parquet import files
from effc.costmodel.traces import Trace, read
from effc.runtime.cache import Cache
from effc.speed import host_hardware

#: Calls after which a region's kernels have all their samples, on a machine that is never quiet too.
CALLS = 2 + 27


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else runs here interrupts no sample."""
    monkeypatch.setattr(tracing, "_preempted", lambda: 0)


class Net(nn.Module):
    """Three kernels, two of which are the same."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.norm = nn.Linear(32, 32), nn.Linear(32, 32), nn.LayerNorm(32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.norm(torch.sin(self.two(torch.cos(torch.sin(self.one(x))))))
        return y


def compiled(model: nn.Module, folder: Path, **options: Any) -> Callable[..., Any]:
    return torch.compile(model, backend="effc", options={"trace": str(folder), **options})


def traces(folder: Path) -> list[Trace]:
    return [trace for path in files([folder]) for trace in read(path).traces]


def test_a_models_runs_become_traces(tmp_path: Path) -> None:
    model, x = Net().eval(), torch.randn(6, 32)
    fast = compiled(model, tmp_path / "new" / "traces")
    with torch.no_grad():
        assert_exact(model, (x,), fast)
        for _ in range(CALLS):
            fast(x)
    (path,) = files([tmp_path / "new" / "traces"])
    part = read(path)
    assert not part.skipped
    assert part.hardware.digest() == host_hardware(Cache()).digest()
    assert {t.family for t in part.traces} == {"model:test_tracing"}
    for trace in part.traces:
        assert trace.rounds >= 9
        assert trace.own_choice
        assert trace.threads == torch.get_num_threads()
        assert computation(KernelSpec.from_json(json.loads(trace.spec))) == trace.computation
    assert {t.kernel.template for t in part.traces} >= {"contraction"}


def test_every_set_of_sizes_is_traced_once(tmp_path: Path) -> None:
    model = nn.Linear(16, 8).eval()
    fast = torch.compile(model, backend="effc", options={"trace": str(tmp_path)}, dynamic=True)
    with torch.no_grad():
        for _ in range(2 * CALLS):
            for rows in (3, 5):
                fast(torch.randn(rows, 16))
    found = traces(tmp_path)
    assert len(found) == 2
    assert {t.symbols for t in found} == {(3,), (5,)}


def test_calls_of_several_threads_are_right_and_traced(tmp_path: Path) -> None:
    model, x = Net().eval(), torch.randn(6, 32)
    fast = compiled(model, tmp_path)
    with torch.no_grad():
        expected = fast(x)
    wrong = []

    def call() -> None:
        with torch.no_grad():
            for _ in range(2 * CALLS):
                if not torch.equal(fast(x), expected):
                    wrong.append(1)

    workers = [threading.Thread(target=call) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong
    assert traces(tmp_path)


def test_a_schedule_of_a_plan_is_not_the_templates_own(tmp_path: Path) -> None:
    model, x = nn.Linear(48, 40).eval(), torch.randn(30, 48)
    plan = effc.plan(model, effc.calibrate(model, [x]))
    (decision,) = plan.decisions
    other = replace(decision, kernels=(decision.kernels[0].with_schedule(mr=1, nr=1, unroll=1),), changed=True)
    fast = compiled(model, tmp_path, plan=replace(plan, decisions=(other,)))
    with torch.no_grad():
        for _ in range(CALLS):
            fast(x)
    assert [t.own_choice for t in traces(tmp_path)] == [False]


def test_a_folder_that_vanishes_costs_traces_and_no_run(tmp_path: Path) -> None:
    folder = tmp_path / "traces"
    model, x = Net().eval(), torch.randn(6, 32)
    fast = compiled(model, folder)
    with torch.no_grad():
        expected = fast(x)
        folder.rmdir()
        with pytest.warns(RuntimeWarning, match="option 'trace': .* records could not be written"):
            found = [fast(x) for _ in range(CALLS)]
    assert all(torch.equal(y, expected) for y in found)


def test_folders_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(effc.OptionError, match=r"option 'trace' is .*: that is a file"):
        effc.Options(trace=tmp_path / "file")
    with pytest.raises(effc.OptionError, match=r"option 'trace': the folder .* cannot be made"), torch.no_grad():
        effc.explain(nn.Linear(3, 4).eval(), torch.randn(2, 3), options={"trace": tmp_path / "file" / "inside"})


_SHORT = """
import sys, torch, effc.tracing
effc.tracing._preempted = lambda: 0
model = torch.nn.Linear(16, 8).eval()
fast = torch.compile(model, backend="effc", options={"trace": sys.argv[1]})
with torch.no_grad():
    for _ in range(2 + 6):
        fast(torch.randn(3, 16))
"""


def test_what_a_short_run_has_is_written_when_it_ends(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-P", "-c", _SHORT, str(tmp_path)], check=True, cwd=tmp_path)
    (trace,) = traces(tmp_path)
    assert trace.rounds == 6


def test_what_the_system_interrupts_is_no_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(10**6))
    monkeypatch.setattr(tracing, "_preempted", lambda: next(ticks))
    fast = compiled(nn.Linear(16, 8).eval(), tmp_path)
    with torch.no_grad():
        for _ in range(CALLS + 3):
            fast(torch.randn(3, 16))
    assert not list(tmp_path.iterdir())
