"""What is learned of the code of GPU kernels: records, features, predictions of unseen shapes, and what need not be compiled."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gpu_cases import linear, softmax
from gpu_interpreted import SM80
from torch import nn

from effc import cli
from effc.collecting.gpu import Clock, GpuRequest, Reply, collect
from effc.collecting.shapes import Subject
from effc.compiler.codegen.gpu import fitting
from effc.compiler.codegen.gpu.compile import Compiled
from effc.compiler.codegen.gpu.contraction.roles import Roles, find
from effc.compiler.codegen.gpu.contraction.schedule import candidates
from effc.compiler.codegen.gpu.launch import Launch
from effc.compiler.codegen.gpu.target import GpuTarget
from effc.compiler.gpu.described import described
from effc.compiler.ir.errors import ArtifactError, LoweringError, OptionError, ToolchainCrash
from effc.compiler.ir.spec import KernelSpec
from effc.compiler.worker import HANDLERS
from effc.costmodel.gpu import features, predictor, training
from effc.costmodel.gpu.dataset import GpuData, dataset
from effc.costmodel.gpu.evaluation import held_out
from effc.costmodel.gpu.traces import Facts, GpuPart, GpuTrace, read, write
from effc.costmodel.model.folder import CARD
from effc.costmodel.parquet import files

pytest.importorskip("lightgbm", reason="needs the extra 'costmodel'")
pytest.importorskip("pyarrow", reason="traces need the extra 'costmodel'")

GPU = described(SM80)


def law(spec: KernelSpec) -> Facts | None:
    """Facts of an invented compiler: it refuses what does not fit, and spills what has no registers."""
    tiling = dict(spec.schedule.parameters)
    bm, bn, bk, stages, warps = (int(tiling[name]) for name in ("bm", "bn", "bk", "stages", "warps"))
    registers = 40 + bm * bn // (32 * warps) + (bm + bn) * bk // (64 * warps)
    shared = 2 * (bm + bn) * bk * stages
    if shared > 120_000:
        return None
    return Facts(min(registers, 255), 8 * (registers > 150), shared, warps, 1, 200 + bm * bn * bk // (512 * warps))


def tilings(spec: KernelSpec) -> list[KernelSpec]:
    roles = find(spec)
    assert isinstance(roles, Roles)
    return [replace(spec, schedule=s) for s in candidates(roles, SM80, 10**6)][::3]


def record(spec: KernelSpec, family: str = "linear") -> GpuTrace:
    facts = law(spec)
    key = "x".join(str(d.size) for d in spec.dims)
    return GpuTrace(
        computation=key, family=family, subject=key, op="linear", spec=text_of(spec), own_choice=False,
        facts=facts, refusal="" if facts else "too much shared memory",
    )  # fmt: skip


def text_of(spec: KernelSpec) -> str:
    return json.dumps(spec.to_json())


@lru_cache(maxsize=1)
def part() -> GpuPart:
    sizes = [(m, n, k) for m in (48, 512, 4096) for n in (64, 700) for k in (128, 2048)]
    return GpuPart(GPU, tuple(record(one) for size in sizes for one in tilings(linear(*size, "f16"))))


@lru_cache(maxsize=1)
def data() -> GpuData:
    return dataset([part()])


@lru_cache(maxsize=1)
def trained() -> predictor.CodePredictor:
    return training.train(data(), rounds=60)


# -- records ----------------------------------------------------------------------------------------------------------
def test_what_is_written_is_read(tmp_path: Path) -> None:
    timed = replace(part().traces[0], median=1e-5)
    whole = GpuPart(replace(GPU, model="a gpu"), (timed, *part().traces[1:9]), ("one",))
    assert read(write(tmp_path, whole)) == whole


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"facts": None}, "neither facts nor a refusal"),
        ({"refusal": "no"}, "neither facts nor a refusal"),
        ({"facts": Facts(300, 0, 0, 4, 1, 10)}, "absurd facts"),
        ({"facts": Facts(30, -8, 0, 4, 1, 10)}, "absurd facts"),
        ({"facts": Facts(30, 0, 0, 0, 1, 10)}, "absurd facts"),
        ({"median": 0.0}, "an absurd time"),
        ({"median": float("inf")}, "an absurd time"),
        ({"spec": "{}"}, "no spec"),
        ({"spec": "[1"}, "no spec"),
        ({"spec": text_of(softmax(8, 8).with_schedule(rows=1, columns=8, warps=1))}, "no product of known sizes"),
        ({"spec": text_of(linear(64, 64, 64, "f16"))}, "no whole tiling"),
        ({"spec": text_of(linear(64, 64, 64, "f16").with_schedule(bm=64))}, "no whole tiling"),
    ],
)
def test_absurd_records_are_skipped_and_counted(tmp_path: Path, change: dict[str, Any], fault: str) -> None:
    good = next(t for t in part().traces if t.facts is not None)
    found = read(write(tmp_path, GpuPart(GPU, (replace(good, **change), good))))
    assert found.traces == (good,)
    assert found.skipped == {fault: 1}


def test_traces_of_a_cpu_are_none_of_a_gpu(tmp_path: Path) -> None:
    from trace_cases import MACHINE, TRACE

    from effc.costmodel.traces import Part
    from effc.costmodel.traces import write as write_cpu

    with pytest.raises(ArtifactError, match=r"effc\.gpu_traces"):
        read(write_cpu(tmp_path, Part(MACHINE, (TRACE,))))


# -- features and predictions -----------------------------------------------------------------------------------------
def test_counts_follow_the_tiling() -> None:
    spec = linear(512, 512, 512, "f16")
    small = spec.with_schedule(
        bm=64, bn=64, bk=32, group=8, split=1, stages=3, warps=4, descriptors=0, persistent=0, tail=1
    )
    changes: Sequence[Mapping[str, int]] = ({}, {"bn": 128}, {"stages": 4}, {"warps": 8})
    rows = features.matrix([small.with_schedule(**{**dict(small.schedule.parameters), **c}) for c in changes], GPU)
    shared, registers = (predictor.counted(rows, name) for name in ("shared", "registers"))
    assert shared.round().tolist() == [24576, 36864, 32768, 24576]
    assert registers[1] > registers[0] == registers[2] > registers[3]
    assert np.isfinite(rows).all()


def test_facts_of_shapes_that_were_not_seen_are_predicted() -> None:
    errors = held_out(data(), (0,), lambda gpu, warps, registers, shared: 1)["all"]
    assert errors["model"].registers < 0.1 < errors["count"].registers
    assert errors["model"].shared < 0.02
    assert errors["model"].spills > 0.95
    assert errors["model"].refused > 0.95
    assert errors["model"].resident == 1.0


def test_what_is_all_but_certain_to_fail_is_told() -> None:
    kernels = [one for size in ((512, 512, 512), (96, 640, 1024)) for one in tilings(linear(*size, "f16"))]
    told = trained().expected_to_fail(kernels, GPU)
    truly = [facts is None or facts.frame > 0 for one in kernels for facts in [law(one)]]
    assert any(told)
    assert np.mean([t for t, f in zip(truly, told, strict=True) if f]) > 0.9


def test_a_model_is_saved_and_read(tmp_path: Path) -> None:
    predictor.save(tmp_path / "m", trained(), data(), {"errors": {}})
    found, card = predictor.load(tmp_path / "m")
    rows = data().rows[:20]
    for name, values in trained().facts(rows).items():
        np.testing.assert_array_equal(found.facts(rows)[name], values)
    assert card["records"] == len(data())
    text = tmp_path / "m" / "registers.txt"
    text.write_text(text.read_text().replace("leaf_value=", "leaf_value=1", 1))
    with pytest.raises(ArtifactError, match="not the text that its card names"):
        predictor.load(tmp_path / "m")
    (tmp_path / "m" / CARD).write_text(json.dumps({**card, "kind": "cpu"}))
    with pytest.raises(ArtifactError, match="train it again"):
        predictor.load(tmp_path / "m")


@pytest.mark.parametrize("missing", ["gpus", "records", "families", "errors"])
def test_a_card_that_says_too_little_is_one_clear_error(
    missing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predictor.save(tmp_path, trained(), data(), {"errors": {}})
    card = json.loads((tmp_path / CARD).read_text())
    (tmp_path / CARD).write_text(json.dumps({name: value for name, value in card.items() if name != missing}))
    assert cli.main(["costmodel", "show", str(tmp_path)]) == 1
    told = capsys.readouterr().err
    assert missing in told
    assert "train it again" in told


def test_a_model_without_one_of_the_facts_is_refused(tmp_path: Path) -> None:
    predictor.save(tmp_path, trained(), data(), {"errors": {}})
    card = json.loads((tmp_path / CARD).read_text())
    del card["texts"]["spills"]
    (tmp_path / CARD).write_text(json.dumps(card))
    with pytest.raises(ArtifactError, match="not for registers, shared, instructions, spills, refused"):
        predictor.load(tmp_path)


# -- compiling --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("failing", "compiled"), [((), 1), ((0,), 1), ((0, 1, 2, 3), 1)])
def test_what_is_expected_to_fail_is_not_compiled(
    failing: tuple[int, ...], compiled: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But where all are, they are compiled as ever."""
    tried: list[str] = []

    def compile_launch(launch: Launch, target: GpuTarget) -> Compiled:
        if not launch.name.endswith("_sum"):
            tried.append(launch.text)
        return Compiled(b"", "", launch.name, launch.warps, 0, 32, 0, ())

    monkeypatch.setattr(fitting, "compile_launch", compile_launch)
    spec = linear(512, 512, 512, "f16")

    def foresight(kernels: Sequence[KernelSpec]) -> list[bool]:
        assert all(one.schedule.parameters for one in kernels)
        return [i in failing for i in range(len(kernels))]

    plain, _ = fitting.compile_fitting(spec, SM80, aligned=True)
    tried.clear()
    emitted, _ = fitting.compile_fitting(spec, SM80, aligned=True, foresight=foresight)
    assert len(tried) == compiled
    assert (emitted.launches[0].text == plain.launches[0].text) == (failing != (0,))


@pytest.mark.parametrize(
    ("says", "taken", "compiled"), [((None, 0), 1, 2), ((16, 8, 0), 2, 3), ((16, 16, 32, 16), 0, 4)]
)
def test_where_what_was_expected_to_fit_does_not_the_others_are_compiled(
    says: tuple[int | None, ...], taken: int, compiled: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first tiling alone is expected to: of each that is compiled the bytes that it spills are told, None where it is refused."""
    tried: list[str] = []

    def compile_launch(launch: Launch, target: GpuTarget) -> Compiled:
        if launch.name.endswith("_sum"):
            return Compiled(b"", "", launch.name, launch.warps, 0, 32, 0, ())
        tried.append(launch.text)
        frame = says[len(tried) - 1]
        if frame is None:
            raise LoweringError("too much shared memory")
        return Compiled(b"", "", launch.name, launch.warps, 0, 32, frame, ())

    def foresight(kernels: Sequence[KernelSpec]) -> list[bool]:
        return [i > 0 for i in range(len(kernels))]

    monkeypatch.setattr(fitting, "compile_launch", compile_launch)
    emitted, _ = fitting.compile_fitting(linear(512, 512, 512, "f16"), SM80, aligned=True, foresight=foresight)
    assert (tried.index(emitted.launches[0].text), len(tried)) == (taken, compiled)


# -- collecting -------------------------------------------------------------------------------------------------------
class Tools:
    """Toolchain processes of the invented compiler, in this one."""

    size = 2

    def __init__(self, crashes: str = "") -> None:
        self.compiled: list[str] = []
        self.crashes = crashes

    def request(self, kind: str, payload: Mapping[str, Any]) -> Any:
        if kind == self.crashes:
            self.crashes = ""
            raise ToolchainCrash("the toolchain process ended")
        if kind != "gpu":
            return json.loads(json.dumps(HANDLERS[kind](payload)))
        spec = KernelSpec.from_json(payload["spec"])
        self.compiled.append(json.dumps(spec.to_json()))
        facts = law(spec)
        if facts is None:
            raise LoweringError("too much shared memory")
        launch = ["k", "", "1", 32 * facts.warps, facts.shared, 5, 0]
        return {"launches": [launch], "facts": [[facts.registers, facts.frame, facts.instructions]]}


class Fixed:
    model = "a gpu"

    def seconds(self, spec: KernelSpec, reply: Reply) -> float | None:
        return 1e-5 * float(reply["facts"][0][0])


def subjects() -> Iterator[Subject]:
    yield Subject("one", "linear", lambda: (nn.Linear(96, 200), (torch.randn(300, 96),)))
    yield Subject("none", "pointwise", lambda: (nn.ReLU(), (torch.randn(8, 8),)))


def gathered(folder: Path, clock: Clock | None = None, crashes: str = "") -> tuple[Tools, Any]:
    tools = Tools(crashes)
    request = GpuRequest(folder, replace(SM80, processors=20), 6, 0, clock=clock)
    return tools, collect(subjects(), request, tools)  # type: ignore[arg-type]


def test_products_are_compiled_once_under_some_tilings(tmp_path: Path) -> None:
    tools, outcome = gathered(tmp_path)
    assert outcome.records == len(tools.compiled) == len(set(tools.compiled)) == 6
    (found,) = [read(path) for path in files([tmp_path])]
    assert sum(t.own_choice for t in found.traces) == 1
    assert {t.median for t in found.traces} == {None}
    assert found.gpu.processors == 20
    for trace in found.traces:
        assert trace.facts is None or replace(trace.facts, resident=1) == law(trace.kernel)
    again, outcome = gathered(tmp_path)
    assert not again.compiled
    assert outcome.records == 0


@pytest.mark.parametrize(("crashes", "records"), [("gpu", 5), ("gpu_tilings", 0)])
def test_a_toolchain_process_that_ends_is_counted_and_what_it_cost_is_compiled_next_time(
    crashes: str, records: int, tmp_path: Path
) -> None:
    _, outcome = gathered(tmp_path, crashes=crashes)
    assert (outcome.records, outcome.lost) == (records, {"ToolchainCrash": 1})
    assert not any("ended" in trace.refusal for path in files([tmp_path]) for trace in read(path).traces)
    assert gathered(tmp_path)[1].records == 6 - records


def test_where_there_is_a_gpu_its_times_are_kept(tmp_path: Path) -> None:
    gathered(tmp_path, Fixed())
    for trace in read(files([tmp_path])[0]).traces:
        assert trace.median == (1e-5 * float(trace.facts.registers) if trace.facts else None)


# -- the commands -----------------------------------------------------------------------------------------------------
def test_the_commands_train_judge_and_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, part())
    traces = ["--traces", str(tmp_path), "--workers", "1"]
    assert cli.main(["costmodel", "train", *traces, "--rounds", "20", "--out", str(tmp_path / "m")]) == 0
    assert "a model of the code of" in capsys.readouterr().out
    assert cli.main(["costmodel", "show", str(tmp_path / "m")]) == 0
    assert "sm_80, 108 processors" in capsys.readouterr().out
    assert cli.main(["costmodel", "eval", *traces, "--seeds", "1", "--json", str(tmp_path / "e.json")]) == 0
    assert json.loads((tmp_path / "e.json").read_text())["gpu_code"]["all"]["model"]["registers"] < 0.2


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--gpu", "sm_90"], "--gpu is for GPU kernels"),
        (["--device", "cuda", "--gpu", "sm_70"], "unknown GPU target"),
        (["--device", "cuda", "--gpu", "sm_90", "--threads", "1"], "--threads is for CPUs"),
    ],
)
def test_options_that_do_not_go_together(
    options: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("triton", reason="needs the extra 'gpu'")
    assert cli.main(["costmodel", "collect", "--out", str(tmp_path), *options]) == 1
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--rounds", "0"], ["--rounds", "-3"], ["--workers", "0"]], ids=str)
@pytest.mark.parametrize("action", ["train", "eval"])
def test_no_trees_and_no_threads_are_one_clear_error(
    action: str, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, part())
    out = ["--out", str(tmp_path / "m")] if action == "train" else []
    assert cli.main(["costmodel", action, "--traces", str(tmp_path), *out, *options]) == 1
    assert "--workers and --rounds must be at least 1" in capsys.readouterr().err


def test_traces_of_both_kinds_are_not_mixed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from trace_cases import MACHINE, TRACE

    from effc.costmodel.traces import Part
    from effc.costmodel.traces import write as write_cpu

    write(tmp_path, part())
    other = write_cpu(tmp_path, Part(MACHINE, (TRACE,)))
    assert cli.main(["costmodel", "train", "--traces", str(tmp_path), "--out", str(tmp_path / "m")]) == 1
    told = " ".join(capsys.readouterr().err.split())
    assert "traces of GPU kernels and others" in told
    assert other.name in told


def test_too_few_records_are_one_clear_error() -> None:
    few = np.arange(len(data())) < 10
    for chosen in (few, few | data().refused, data().refused):
        with pytest.raises(OptionError, match="too few to learn from"):
            training.train(data().only(chosen))
