"""The collector: nothing is measured twice, a killed collection goes on, and what it measures is what ran."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from collecting_cases import FakeBench, held, request_of, subjects
from kernels import Kernel, LoopsBuilder
from trace_cases import MACHINE, TRACE

from effc import cli
from effc.collecting import code_facts, shapes
from effc.collecting.assignments import Assignment
from effc.collecting.collector import Outcome, Request, collect, sampled
from effc.collecting.found import Found
from effc.collecting.host import HostBench
from effc.collecting.shapes import Subject, spread
from effc.collecting.windows import Plan, TooNoisy
from effc.compiler.codegen.cpu.target import CHOICE, Target
from effc.compiler.ir.spec import KernelSpec
from effc.costmodel.traces import Trace
from effc.runtime.cache import Cache
from effc.speed import host_hardware

pytest.importorskip("pyarrow", reason="traces need the extra 'costmodel'")
pytest.importorskip("capstone", reason="the collector needs the extra 'costmodel'")


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
    assert outcome.lost == {"broken: LoweringError: this subject does not compile": 1, "too few clean windows": 12}
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


def test_zeros_of_a_subject_are_left_out_and_factors_are_two_kernels(tmp_path: Path) -> None:
    bench = HostBench(Request(tmp_path, (1,), 3, 0))

    def found(family: str, fits: str) -> list[KernelSpec]:
        subject = next(s for s in spread([family], 0) if fits in s.name)
        return [kernel.spec for kernel in bench.kernels(subject)]

    weights = [o.sparsity for spec in found("sparse", "16x1 0.9 zeros") for o in spec.operands if o.role == "packed"]
    assert any(sparsity is not None for sparsity in weights)
    stages = [stage for spec in found("low_rank", "low_rank/") for stage in (spec.stages or (spec,))]
    assert sum(stage.template == "contraction" for stage in stages) == 2


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


@pytest.mark.parametrize(
    "text",
    [
        "62f2764852c0",  # vdpbf16ps zmm0, zmm1, zmm0
        "62f27648524040",  # … , [rax + 0x40 * 64]
        "62f27648528000100000",  # … , [rax + 0x1000]
        "62f276485204c8",  # … , [rax + 8*rcx]
        "62f276485205ffffff7f",  # … , [rip + …]
        "62f2764852048d00000000",  # … , [4*rcx + 0]
        "62f2764852448840",  # … , [rax + 4*rcx + …]
    ],
)
def test_instructions_that_the_disassembler_does_not_know_are_skipped_whole(text: str) -> None:
    unknown, after = bytes.fromhex(text), bytes.fromhex("62f17c4858c1c3")  # vaddps zmm0, zmm0, zmm1; ret
    assert code_facts.length(unknown + after) == len(unknown)
    names = [name for _, _, name, _ in code_facts.disassembler().disasm_lite(unknown + after, 0)]
    assert names[1:] == ["vaddps", "ret"]


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
    monkeypatch.setattr("effc.collecting.host.HostBench", lambda request: FakeBench())
    command = ["costmodel", "collect", "--out", str(tmp_path), "--shapes", "3", "--threads", "1"]
    assert cli.main(command) == 0
    assert "18 records of 3 subjects" in capsys.readouterr().out
    assert cli.main(command) == 0
    assert "0 records of 0 subjects" in capsys.readouterr().out


def test_a_lesser_cpu_is_measured_and_described(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(CHOICE, "")
    seen: list[Target] = []

    def bench(request: Request) -> FakeBench:
        seen.append(Target.host())
        return FakeBench()

    monkeypatch.setattr("effc.collecting.host.HostBench", bench)
    command = ["costmodel", "collect", "--out", str(tmp_path), "--shapes", "1", "--threads", "1", "--isa", "x86-64"]
    try:
        assert cli.main(command) == 0
        (target,) = seen
        assert target.vector_bytes == 16
        assert not {"avx2", "avx512f", "fma"} & {*host_hardware(Cache(str(tmp_path / "cache"))).isa}
        assert cli.main([*command, "--scheduler", "tcp://nowhere:1"]) == 1
        assert "start the workers with EFFC_CPU set" in capsys.readouterr().err
    finally:
        Target.host.cache_clear()


def test_an_interruption_says_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("effc.collecting.host.HostBench", lambda request: FakeBench(stop_after=2))
    assert cli.main(["costmodel", "collect", "--out", str(tmp_path), "--shapes", "3", "--threads", "1"]) == 130
    assert "the same command goes on from there" in capsys.readouterr().out
    assert len(held(tmp_path)) == 6


def test_a_users_model_is_a_subject(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("import torch\ndef model():\n    return torch.nn.ReLU(), (torch.ones(3),)\n")
    subject = Assignment(model=f"{file}:model").subject()
    assert (subject.family, subject.name) == ("model", f"model:{file}:model")
    model, inputs = subject.make()
    assert torch.equal(model(*inputs), torch.ones(3))


def test_what_was_lost_is_printed() -> None:
    from effc.cli.costmodel_collect import summary

    outcome = Outcome(subjects=2, records=10, windows=40, contaminated=10)
    outcome.lost["too few clean windows"] = 3
    text = summary(outcome, Path("traces"))
    assert "25.0% of 40 windows rejected" in text
    assert "not measured, 3 times: too few clean windows" in text
