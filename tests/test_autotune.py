"""Schedules by measurement: which are measured, that nothing is measured twice, and that plans follow what was found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from exactness import assert_exact
from torch import nn
from trace_cases import MACHINE

import effc
from effc.collecting.found import Found
from effc.collecting.timer import KernelTimer
from effc.collecting.windows import TooNoisy
from effc.compiler.capture import record
from effc.compiler.ir.candidate import Latency
from effc.compiler.ir.expr import const, var
from effc.compiler.ir.spec import Dim, Instr, KernelSpec, Operand
from effc.costmodel.traces import Timing
from effc.planning.autotune import Tuner, near
from effc.planning.trial import Trial
from effc.runtime.cache import Cache

_COPY = (
    Instr("load", (), "f32", (("address", var("d0")), ("operand", 0))),
    Instr("store", (0,), "", (("address", var("d0")), ("operand", 1))),
)
SPEC = KernelSpec(
    "loops", (Dim(const(8)),), (Operand("f32", "read", const(8)), Operand("f32", "write", const(8))), _COPY
)
SCHEDULES = [SPEC.with_schedule(mr=mr) for mr in range(6)]
KERNEL = Found("copy", "copy", SCHEDULES[0], (), {})


def timing(seconds: float, spread: float = 0.01) -> Timing:
    low, high = seconds * (1 - spread), seconds * (1 + spread)
    return Timing(median=seconds, low=low, high=high, least=low, rounds=9, contaminated=0, calls=10)


class FakeTimer:
    """A schedule takes ``times[mr]`` seconds; none: too noisy."""

    def __init__(self, times: dict[int, Timing]) -> None:
        self.times, self.asked = times, list[list[int]]()

    def alternatives(self, spec: KernelSpec) -> list[KernelSpec]:
        return SCHEDULES

    def timings(self, found: Found, chosen: Sequence[KernelSpec], threads: int) -> list[Timing | TooNoisy]:
        self.asked.append([s.schedule["mr"] for s in chosen])
        return [self.times.get(s.schedule["mr"], TooNoisy(2, 20)) for s in chosen]


def tuner(cache: Path, times: dict[int, Timing], uncertainty: float = 1.0, most: int = 3, **changes: Any) -> Tuner:
    """Schedules are predicted to take 1.0, 0.9, 0.8 … seconds."""

    def price(spec: KernelSpec, symbols: Sequence[int]) -> Latency:
        return Latency(1.0 - spec.schedule["mr"] / 10, uncertainty)

    made = Tuner(FakeTimer(times), price, MACHINE, Cache(cache), most, 2)
    return replace(made, **changes)


def asked(made: Tuner) -> list[list[int]]:
    assert isinstance(made.timer, FakeTimer)
    return made.timer.asked


def test_the_best_by_the_price_are_measured_beside_the_own_one() -> None:
    priced = [Latency(1.0, 0.5), Latency(1.0, 0.5), Latency(0.8, 0.5), Latency(0.9, 0.5), Latency(4.0, 0.5)]
    found = near(SCHEDULES[:5], lambda spec: priced[spec.schedule["mr"]], 3)
    assert [s.schedule["mr"] for s in found] == [0, 2, 3]
    assert [s.schedule["mr"] for s in near(SCHEDULES[:5], lambda s: priced[s.schedule["mr"]], 9)] == [0, 2, 3, 1]


def test_where_the_price_is_sure_nothing_is_measured(tmp_path: Path) -> None:
    sure = tuner(tmp_path, {}, uncertainty=0.01)
    own = replace(sure, price=lambda spec, symbols: Latency(1.0 + spec.schedule["mr"], 0.01))
    own.tune([(KERNEL, 1.0)])
    assert asked(own) == []


def test_a_schedule_is_taken_where_it_is_surely_faster(tmp_path: Path) -> None:
    made = tuner(tmp_path, {0: timing(1.0), 5: timing(0.9), 4: timing(0.8)})
    made.tune([(KERNEL, 1.0)])
    (found,) = made.tuned
    assert (found.before.schedule["mr"], found.after.schedule["mr"], found.seconds, found.among) == (
        0,
        4,
        (1.0, 0.8),
        3,
    )
    assert str(found) == "of 3 schedules measured this one is 25 % faster than the one that was predicted"
    unclear = tuner(tmp_path / "unclear", {0: timing(1.0, 0.2), 5: timing(0.9, 0.2), 4: timing(2.0)})
    unclear.tune([(KERNEL, 1.0)])
    assert unclear.tuned == []


def test_nothing_is_measured_twice(tmp_path: Path) -> None:
    times = {0: timing(1.0), 5: timing(0.9), 4: timing(0.8)}
    tuner(tmp_path, times).tune([(KERNEL, 1.0)])
    again = tuner(tmp_path, times)
    again.tune([(KERNEL, 1.0)])
    assert (asked(again), again.measured, again.known) == ([], 0, 3)
    assert [t.after.schedule["mr"] for t in again.tuned] == [4]
    for other in (
        tuner(tmp_path, times, threads=1),
        tuner(tmp_path, times, hardware=replace(MACHINE, name="another")),
        tuner(tmp_path, times, most=4),
    ):
        other.tune([(KERNEL, 1.0)])
        assert len(asked(other)) == 1


def test_a_noisy_machine_tells_nothing_and_is_counted(tmp_path: Path) -> None:
    made = tuner(tmp_path, {0: timing(1.0)})
    made.tune([(KERNEL, 1.0)])
    assert (made.tuned, made.noisy) == ([], 1)
    again = tuner(tmp_path, {0: timing(1.0), 5: timing(0.5)})
    again.tune([(KERNEL, 1.0)])
    assert [t.after.schedule["mr"] for t in again.tuned] == [5]


def test_kernels_that_take_no_time_are_left(tmp_path: Path) -> None:
    made = tuner(tmp_path, {})
    made.tune([(KERNEL, 1.0), (replace(KERNEL, computation="small"), 0.001)])
    assert len(asked(made)) == 1


# -- in a plan --------------------------------------------------------------------------------------------------------
class Mlp(nn.Module):
    """Two layers of the same sizes, which one measurement serves, and softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(48, 48), nn.Linear(48, 48)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.two(torch.relu(self.one(x))).softmax(-1)
        return y


def last_is_fastest(
    timer: KernelTimer, found: Found, chosen: Sequence[KernelSpec], threads: int
) -> list[Timing | TooNoisy]:
    return [timing(1e-4 / (1 + i)) for i in range(len(chosen))]


def test_a_plan_takes_the_schedules_that_are_measured_fastest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KernelTimer, "timings", last_is_fastest)
    monkeypatch.setattr(Trial, "seconds", lambda trial, *compiled: [1.0, 2.0][: len(compiled)])
    model, x = Mlp().eval(), torch.randn(40, 48)
    calibration = effc.calibrate(model, [x])
    plan = effc.plan(model, calibration, autotune=3, options={"cache_dir": tmp_path})
    assert plan.exact
    changed = {d.site.partition("/")[0] for d in plan.decisions if d.changed}
    assert changed == {"one.weight", "two.weight"}
    assert all("of 3 schedules measured" in d.reason for d in plan.decisions if d.changed)
    assert any(note.startswith("autotune: 6 schedules were measured") for note in plan.notes)
    with torch.no_grad(), record() as recording:
        options: dict[str, Any] = {"plan": plan}
        assert_exact(model, (x,), torch.compile(model, backend="effc", options=options))
    run = {spec.key(): spec.schedule for program, _ in recording.programs for spec in program.kernels}
    assert {key: run[key] for key in plan.schedules()} == plan.schedules()
    again = effc.plan(model, calibration, autotune=3, options={"cache_dir": tmp_path})
    assert any(note.startswith("autotune: 0 schedules were measured, 6 were known") for note in again.notes)
    assert again.schedules() == plan.schedules()


def test_schedules_that_make_the_model_slower_are_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KernelTimer, "timings", last_is_fastest)
    monkeypatch.setattr(Trial, "seconds", lambda trial, *compiled: [2.0, 1.0][: len(compiled)])
    model, x = Mlp().eval(), torch.randn(40, 48)
    plan = effc.plan(model, effc.calibrate(model, [x]), autotune=3, options={"cache_dir": tmp_path})
    assert not plan.schedules()
    assert "by these schedules the whole model takes 2 times as long: they are not taken" in plan.notes


@pytest.mark.parametrize("value", [-1, 1, 2.5, True, "all"])
def test_what_is_no_number_of_schedules(value: Any) -> None:
    model = nn.Linear(3, 4).eval()
    with pytest.raises(effc.OptionError, match=r"option 'autotune' is .*: expected how many schedules of a kernel"):
        effc.plan(model, effc.calibrate(model, [torch.randn(2, 3)]), autotune=value)
