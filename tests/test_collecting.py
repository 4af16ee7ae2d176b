"""The collector: windows that are contaminated do not count, a killed collection goes on, and what it measures is what ran."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from kernels import Kernel, LoopsBuilder
from trace_cases import MACHINE, TRACE

from effc import cli
from effc.collecting import code_facts, shapes, windows
from effc.collecting.assignments import Assignment
from effc.collecting.cluster import ClusterError, spread_out
from effc.collecting.collector import HostBench, Outcome, Request, collect, sampled
from effc.collecting.found import Found
from effc.collecting.shapes import Subject, spread
from effc.collecting.windows import Plan, Reference, Timing, TooNoisy, measure
from effc.compiler.ir.errors import LoweringError
from effc.compiler.ir.spec import KernelSpec
from effc.costmodel.hardware import Hardware
from effc.costmodel.traces import Trace, files, read

pytest.importorskip("capstone", reason="the collector needs the extra 'costmodel'")


# -- windows ----------------------------------------------------------------------------------------------------------
class Machine:
    """A machine in which a call takes ``cost`` seconds of its own, and ``slow(n)`` tells how much slower the n-th piece of work is."""

    def __init__(self, slow: dict[int, float] | None = None) -> None:
        self.done, self.taken, self.slow = 0, 0, slow or {}
        self.slept = 0.0

    def rival(self, cost: float) -> windows.Run:
        def run(calls: int) -> float:
            self.done += 1
            return calls * cost * self.slow.get(self.done, 1.0)

        return run

    def sleep(self, seconds: float) -> None:
        self.slept += seconds

    def measure(self, costs: Sequence[float], plan: Plan) -> list[Timing | TooNoisy]:
        reference = Reference([(self.rival(1e-4), 1.15)])
        return measure([self.rival(c) for c in costs], reference, plan, lambda: self.taken, self.sleep)

    def timings(self, costs: Sequence[float], plan: Plan) -> list[Timing]:
        found = self.measure(costs, plan)
        assert all(isinstance(t, Timing) for t in found)
        return [t for t in found if isinstance(t, Timing)]


def test_a_quiet_machine_gives_the_time_itself() -> None:
    machine = Machine()
    short, long = machine.timings([1e-5, 2e-4], Plan())
    assert [short.median, long.median] == pytest.approx([1e-5, 2e-4])
    assert (short.rounds, short.contaminated) == (long.rounds, long.contaminated) == (9, 0)
    assert short.calls * short.median >= 4e-4
    assert long.calls * long.median >= 4e-4
    assert short.calls > 10 * long.calls > 0
    assert machine.slept == 0


def test_a_window_is_long_enough_for_what_a_call_from_python_costs() -> None:
    (found,) = measure([lambda calls: 2e-6 + calls * 2e-8], Reference([]), Plan(), lambda: 0, lambda s: None)
    assert isinstance(found, Timing)
    assert found.median == pytest.approx(2e-8, rel=0.02)


def test_windows_beside_a_slow_reference_do_not_count() -> None:
    # Everything between two moments is slower, the reference too: a burst of other work.
    machine = Machine(dict.fromkeys(range(15, 30), 1.7))
    (found,) = machine.timings([1e-4], Plan())
    assert found.contaminated > 0
    assert [found.low, found.high] == pytest.approx([1e-4, 1e-4])
    assert machine.slept > 0


def test_windows_in_which_a_core_was_taken_do_not_count() -> None:
    machine = Machine()
    plain, turn = machine.rival(1e-4), itertools.count()

    def run(calls: int) -> float:
        machine.taken += next(turn) % 5 == 0
        return plain(calls)

    reference = Reference([(machine.rival(1e-4), 1.15)])
    (found,) = measure([run], reference, Plan(), lambda: machine.taken, machine.sleep)
    assert isinstance(found, Timing)
    assert found.contaminated > 0
    assert found.rounds == 9


def test_a_machine_that_is_never_quiet_gives_nothing() -> None:
    noise = {n: 1.0 + (n % 2) for n in range(1000)}
    for found in Machine(noise).measure([1e-4, 1e-3], Plan()):
        assert isinstance(found, TooNoisy)
        assert found.kept < 5
        assert found.kept + found.contaminated == 27


def test_long_windows_are_fewer() -> None:
    short, long = Machine().timings([1e-4, 0.2], Plan())
    assert (short.rounds, long.rounds) == (9, 5)


# -- collecting -------------------------------------------------------------------------------------------------------
class FakeBench:
    """Kernels of two computations a subject, under three schedules each."""

    def __init__(self, stop_after: int = 10**9, hardware: Hardware = MACHINE) -> None:
        self.hardware, self.measured, self._left = hardware, list[tuple[str, str, int]](), stop_after

    def kernels(self, subject: Subject) -> list[Found]:
        if subject.name == "broken":
            raise LoweringError("this subject does not compile\nat all")
        spec = KernelSpec.from_json(json.loads(TRACE.spec))
        return [Found(f"{subject.name} {i}", "f", spec, (), {}) for i in range(2)]

    def alternatives(self, spec: KernelSpec) -> list[KernelSpec]:
        return [spec, *(spec.with_schedule(mr=mr) for mr in (1, 2))]

    def traces(
        self, subject: Subject, found: Found, chosen: Sequence[KernelSpec], threads: int
    ) -> list[Trace | TooNoisy]:
        if not self._left:
            raise KeyboardInterrupt
        self._left -= 1
        self.measured += [(found.computation, str(s.schedule.parameters), threads) for s in chosen]
        if "noisy" in subject.name:
            return [TooNoisy(2, 20)] * len(chosen)
        common = replace(TRACE, computation=found.computation, symbols=(), threads=threads, when=datetime.now(UTC))
        own = found.spec.schedule
        return [replace(common, spec=json.dumps(s.to_json()), own_choice=s.schedule == own) for s in chosen]


def subjects(*names: str) -> Iterator[Subject]:
    return (Subject(name, "linear", lambda: (torch.nn.ReLU(), ())) for name in names)


def request_of(folder: Path, **changes: object) -> Request:
    return replace(Request(folder, (1, 2), 8, 0), **changes)  # type: ignore[arg-type]


def held(folder: Path) -> list[Trace]:
    return [trace for path in files([folder]) for trace in read(path).traces]


def test_everything_is_measured_once(tmp_path: Path) -> None:
    bench = FakeBench()
    outcome = collect(subjects("a", "b"), request_of(tmp_path), bench)
    assert len(bench.measured) == len(set(bench.measured)) == 2 * 2 * 3 * 2
    assert (outcome.records, outcome.subjects, outcome.known) == (24, 2, 0)
    assert len(held(tmp_path)) == 24
    assert sum(t.own_choice for t in held(tmp_path)) == 8
    again = FakeBench()
    assert collect(subjects("a", "b"), request_of(tmp_path), again).records == 0
    assert not again.measured


def test_equal_computations_of_other_subjects_are_not_measured_again(tmp_path: Path) -> None:
    class Same(FakeBench):
        def kernels(self, subject: Subject) -> list[Found]:
            return [replace(found, computation="same") for found in super().kernels(subject)]

    outcome = collect(subjects("a", "b"), request_of(tmp_path), Same())
    assert (outcome.records, outcome.known) == (6, 18)


def test_an_interruption_loses_the_kernel_in_progress_alone(tmp_path: Path) -> None:
    killed = FakeBench(stop_after=6)
    with pytest.raises(KeyboardInterrupt):
        collect(subjects("a", "b", "c"), request_of(tmp_path), killed)
    assert len(held(tmp_path)) == 18
    resumed = FakeBench()
    outcome = collect(subjects("a", "b", "c"), request_of(tmp_path), resumed)
    assert not set(killed.measured) & set(resumed.measured)
    assert len(killed.measured) + len(resumed.measured) == len(held(tmp_path)) == 36
    assert outcome.subjects == 2, "the first one is finished"


def test_a_broken_part_is_told_and_the_rest_is_kept(tmp_path: Path) -> None:
    collect(subjects("a"), request_of(tmp_path), FakeBench())
    (tmp_path / "cut.parquet").write_bytes(b"PAR1")
    outcome = collect(subjects("a", "b"), request_of(tmp_path), FakeBench())
    assert len(outcome.unreadable) == 1
    assert "cut.parquet" in outcome.unreadable[0]
    assert outcome.records == 12


def test_traces_of_another_machine_do_not_count_as_measured(tmp_path: Path) -> None:
    collect(subjects("a"), request_of(tmp_path), FakeBench())
    other = FakeBench(hardware=replace(MACHINE, name="another cpu"))
    assert collect(subjects("a"), request_of(tmp_path), other).records == 12


def test_what_cannot_be_measured_is_counted_by_its_reason(tmp_path: Path) -> None:
    outcome = collect(subjects("broken", "noisy", "a"), request_of(tmp_path), FakeBench())
    assert outcome.lost == {"LoweringError: this subject does not compile": 1, "too few clean windows": 12}
    assert outcome.records == 12
    assert outcome.windows == 12 * 22 + 12 * (TRACE.rounds + TRACE.contaminated)


def test_what_was_too_noisy_is_tried_again(tmp_path: Path) -> None:
    class Quiet(FakeBench):
        def traces(
            self, subject: Subject, found: Found, chosen: Sequence[KernelSpec], threads: int
        ) -> list[Trace | TooNoisy]:
            return super().traces(replace(subject, name="quiet"), found, chosen, threads)

    assert collect(subjects("noisy"), request_of(tmp_path), FakeBench()).records == 0
    assert collect(subjects("noisy"), request_of(tmp_path), Quiet()).records == 12


def test_a_budget_ends_it_between_kernels(tmp_path: Path) -> None:
    seconds = itertools.count()
    bench = FakeBench()
    outcome = collect(
        subjects(*"abcdefgh"), request_of(tmp_path, seconds=10.0), bench, clock=lambda: float(next(seconds))
    )
    assert 0 < outcome.records < 8 * 12
    assert len(held(tmp_path)) == outcome.records


def test_the_templates_own_schedule_is_always_among_the_sample() -> None:
    import random

    spec = KernelSpec.from_json(json.loads(TRACE.spec))
    listed = [spec.with_schedule(mr=i) for i in range(20)]
    drawn = [sampled(listed, 5, random.Random(seed)) for seed in range(10)]
    assert all(d[0] == listed[0] and len(d) == 5 for d in drawn)
    assert len({tuple(s.schedule["mr"] for s in d) for d in drawn}) > 1
    assert sampled(listed[:1], 5, random.Random(0)) == listed[:1]


# -- the spread of shapes ---------------------------------------------------------------------------------------------
def test_the_spread_is_the_same_for_the_same_seed() -> None:
    def names(seed: int) -> list[str]:
        return [s.name for s in itertools.islice(spread(list(shapes.FAMILIES), seed), 70)]

    assert names(1) == names(1) != names(2)
    assert {name.partition("/")[0] for name in names(1)} == set(shapes.FAMILIES)
    assert len(set(names(1))) > 60


@pytest.mark.parametrize("family", shapes.FAMILIES)
def test_every_family_makes_modules_that_run(family: str) -> None:
    for subject in itertools.islice(spread([family], 3), 4):
        model, inputs = subject.make()
        assert subject.family == family
        with torch.no_grad():
            assert model(*inputs) is not None


# -- many machines ----------------------------------------------------------------------------------------------------
ASSIGNED = [Assignment("", ("linear",), 0, index) for index in range(4)]


def fake(request: Request) -> FakeBench:
    return FakeBench()


@pytest.fixture
def cluster() -> Iterator[Any]:
    distributed = pytest.importorskip("distributed", reason="needs the extra 'cluster'")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None, scheduler_port=0, protocol="tcp"
    ) as made:
        yield made


def test_a_scheduler_spreads_subjects_and_goes_on(cluster: Any, tmp_path: Path) -> None:
    first = spread_out(cluster.scheduler_address, ASSIGNED[:2], request_of(tmp_path), bench=fake)
    assert (first.records, first.subjects) == (24, 2)
    assert len(held(tmp_path)) == 24
    again = spread_out(cluster.scheduler_address, ASSIGNED, request_of(tmp_path), bench=fake)
    assert (again.records, again.subjects, again.reached) == (24, 2, 4)
    assert len(held(tmp_path)) == 48
    assert {p.suffix for p in tmp_path.iterdir()} == {".parquet"}


def test_a_scheduler_that_goes_away_loses_nothing_that_came_back(cluster: Any, tmp_path: Path) -> None:
    def leave(text: str, outcome: Outcome) -> None:
        cluster.close()

    with pytest.raises(ClusterError, match=r"went away; 12 records are kept .* goes on"):
        spread_out(cluster.scheduler_address, ASSIGNED, request_of(tmp_path), leave, slow)
    assert len(held(tmp_path)) == 12


def slow(request: Request) -> FakeBench:
    time.sleep(0.5)
    return FakeBench()


def test_no_scheduler_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed", reason="needs the extra 'cluster'")
    monkeypatch.setattr("effc.collecting.cluster._ANSWER", 0.5)
    with pytest.raises(ClusterError, match=r"no scheduler answers at tcp://127\.0\.0\.1:9"):
        spread_out("tcp://127.0.0.1:9", ASSIGNED, request_of(tmp_path), bench=fake)


# -- this machine -----------------------------------------------------------------------------------------------------
def test_a_layer_is_measured_on_this_machine(tmp_path: Path) -> None:
    def small() -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
        return torch.nn.Sequential(torch.nn.Linear(48, 80), torch.nn.ReLU()), (torch.randn(5, 48),)

    request = Request(tmp_path, (1,), 3, 0)
    patient = Plan(rounds=3, fewest=2, patience=1000, pause=0.0)
    outcome = collect(iter([Subject("linear/small", "linear", small)]), request, HostBench(request, patient))
    assert not outcome.lost
    found = held(tmp_path)
    assert len(found) == outcome.records == 3
    assert {t.kernel.template for t in found} == {"contraction"}
    assert len({t.kernel.schedule for t in found}) == 3
    assert [t.own_choice for t in found] == [True, False, False]
    for trace in found:
        assert 1e-8 < trace.least <= trace.median < 1e-2
        assert trace.code is not None
        assert trace.code.instructions > 20
        assert 0.1 < trace.code.vector_share < 1


def test_an_embedding_is_measured_with_its_own_indices(tmp_path: Path) -> None:
    def table() -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
        return torch.nn.Embedding(9, 16), (torch.tensor([8, 0, 3]),)

    request = Request(tmp_path, (1,), 3, 0)
    patient = Plan(rounds=3, fewest=2, patience=1000, pause=0.0)
    assert not collect(iter([Subject("embedding", "move", table)]), request, HostBench(request, patient)).lost
    assert held(tmp_path)


def test_spills_are_seen_in_the_code() -> None:
    def wide(values: int) -> Kernel:
        """Loads ``values`` vectors, and only then stores them in another order: all live at once."""
        k = LoopsBuilder([(64, "parallel")], [("f32", "read", 64 * values), ("f32", "write", 64 * values)])
        loads = [k.load(0, f"d0 + {64 * i}") for i in range(values)]
        total = loads[0]
        for i in loads[1:]:
            total = k.op("arith.addf", total, i)
        for i, value in enumerate(loads):
            k.store(1, f"d0 + {64 * i}", k.op("arith.divf", value, total))
        return Kernel(k.spec())

    few, many = code_facts.facts(wide(4).object), code_facts.facts(wide(48).object)
    assert few.spills == few.reloads == 0
    assert many.spills > 8
    assert many.reloads > 8
    assert many.instructions > few.instructions > 10
    assert many.code_bytes > 2 * many.instructions


# -- the command line -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threads", "0"], "--threads must be between 1 and"),
        (["--threads", "two"], "write numbers"),
        (["--families", "linaer"], "unknown family 'linaer': there are linear, gemm"),
        (["--shapes", "-1"], "must not be negative"),
        (["--shapes", "0"], "there is nothing to collect"),
        (["--budget", "nan"], "--budget positive"),
        (["--model", "nowhere.py:f"], "there is no file nowhere.py"),
    ],
)
def test_a_wrong_argument_is_one_clear_error(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["costmodel", "collect", "--out", str(tmp_path / "new"), *arguments]) == 1
    err = capsys.readouterr().err
    assert err.startswith("effc: error: ")
    assert message in err
    assert not (tmp_path / "new").exists()


def test_the_command_collects_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("effc.collecting.collector.HostBench", lambda request: FakeBench())
    command = ["costmodel", "collect", "--out", str(tmp_path), "--shapes", "3", "--threads", "1"]
    assert cli.main(command) == 0
    assert "18 records of 3 subjects" in capsys.readouterr().out
    assert cli.main(command) == 0
    assert "0 records of 0 subjects" in capsys.readouterr().out


def test_what_was_lost_is_printed() -> None:
    from effc.cli.costmodel_collect import summary

    outcome = Outcome(subjects=2, records=10, windows=40, contaminated=10)
    outcome.lost["too few clean windows"] = 3
    text = summary(outcome, Path("traces"))
    assert "25.0% of 40 windows rejected" in text
    assert "not measured, 3 times: too few clean windows" in text
