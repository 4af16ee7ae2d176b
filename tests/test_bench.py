"""``effc bench``: its statistics, its roofline, what it writes, and what it says of a mistake."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bench_served import Served
from rich.console import Console
from torch import nn

from effc import cli
from effc.bench import kernels, plot, table
from effc.bench.kernels import attention, compressed, contractions, convolutions, moves, pointwise, quantized, rows
from effc.bench.load import Load
from effc.bench.remote import Remote, RemoteError
from effc.bench.result import Measurement, Outcome, Report
from effc.bench.runner import Subject, relative_error
from effc.bench.spread import Spread
from effc.bench.systems import SYSTEMS, Setting
from effc.bench.work import Work, work_of
from effc.compiler.capture import record

FLOAT32 = Setting(2, "float32")


def test_a_spread_is_the_median_and_two_percentiles() -> None:
    assert Spread.of([5.0, 1.0, 3.0, 2.0, 4.0, 6.0]) == Spread(3.5, 2.0, 5.0)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0)


def test_what_slows_a_whole_round_cancels_in_ratios() -> None:
    assert Spread.of_ratios([2.0, 20.0, 4.0], [1.0, 10.0, 2.0]) == Spread(2.0, 2.0, 2.0)


def test_the_work_of_a_linear() -> None:
    assert work_of(nn.Linear(7, 5), (torch.ones(3, 7),)) == Work(2 * 3 * 7 * 5, 4 * (7 * 5 + 5 + 3 * 7 + 3 * 5))


def test_of_an_embedding_only_rows_are_read() -> None:
    assert work_of(nn.Embedding(1000, 8), (torch.tensor([1, 2, 3]),)).bytes == 3 * 8 * 4 + 3 * 8 + 3 * 8 * 4


def test_a_weight_that_is_used_twice_is_read_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(100, 8)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.words(ids) @ self.words.weight.T
            return y

    assert work_of(Tied(), (torch.tensor([1, 2]),)).bytes == 100 * 8 * 4 + 2 * 8 + 2 * 100 * 4


def test_the_roofline_is_the_slower_of_arithmetic_and_memory() -> None:
    assert Work(1000, 10).floor(peak=100.0, bandwidth=10.0) == 10.0
    assert Work(10, 1000).floor(peak=100.0, bandwidth=10.0) == 100.0


def test_what_bounds_a_kernel() -> None:
    assert Work(1000, 10).bound(peak=100.0, bandwidth=10.0, cache=5) == "compute"
    assert Work(10, 1000).bound(peak=100.0, bandwidth=10.0, cache=999) == "memory"
    assert Work(10, 1000).bound(peak=100.0, bandwidth=10.0, cache=1000) == "cache"


def test_the_bytes_are_those_of_the_dtype_but_indices_stay_as_long() -> None:
    table, at = torch.ones(9, 4, dtype=torch.bfloat16), torch.zeros(3, 2, dtype=torch.int64)

    class Gather(nn.Module):
        def forward(self, x: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
            return torch.gather(x, 1, at)

    assert work_of(Gather(), (table, at)).bytes == 9 * 4 * 2 + 3 * 2 * 8 + 3 * 2 * 2


def test_the_error_is_of_the_worst_output() -> None:
    exact = [torch.ones(4).double(), torch.full((2,), 2.0).double()]
    assert relative_error([torch.ones(4), torch.full((2,), 2.5)], exact) == 0.25
    assert relative_error([torch.ones(4), torch.tensor([2.0, math.nan])], exact) == math.inf
    assert relative_error([torch.ones(4)], exact) == math.inf
    assert relative_error([torch.ones(2, 2), torch.full((2,), 2.0)], exact) == math.inf


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Remote]:
    remote = Remote(Served, {"EFFC_TEST_VARIABLE": "set"}, tmp_path / "log")
    yield remote
    remote.close(kill=True)


def test_a_remote_has_its_own_environment_and_survives_an_error(served: Remote) -> None:
    with pytest.raises(RemoteError, match=r"^ValueError: not like this$"):
        served.call("refuse", timeout=60)
    assert served.call("variable", "EFFC_TEST_VARIABLE", timeout=60) == "set"


def test_a_crash_of_a_remote_is_an_error(served: Remote) -> None:
    with pytest.raises(RemoteError, match="ended with status 7"):
        served.call("die", timeout=60)


def test_a_remote_that_hangs_is_ended(served: Remote) -> None:
    with pytest.raises(RemoteError, match="no answer in 1 s"):
        served.call("wait", 60, timeout=1)


def outcome(system: str, *seconds: float) -> Outcome:
    latency = Spread.of(seconds)
    return Outcome(system, "ok", "", seconds, latency, 1.5, 2e-7, 9 << 20, 8 << 20, 0.5 / latency.median)


@pytest.fixture
def report() -> Report:
    outcomes = (
        outcome("eager", 4.0, 4.0, 8.0),
        outcome("inductor", 3.0, 3.0, 6.0),
        Outcome("openvino", "absent", "openvino is not installed"),
        outcome("effc", 2.0, 2.0, 4.0),
    )
    limits = Spread(100.0, 90.0, 110.0)
    load = Load((0.1, 0.2, 0.3), (("other", 0.5),))
    settings = {"threads": 2, "dtype": "float32", "rounds": 3, "systems": ("eager", "inductor", "openvino", "effc")}
    measurement = Measurement("mlp", 50, 10, limits, limits, 0.5, "memory", outcomes)
    return Report("2026-01-01T00:00:00+00:00", {"cpu": "one"}, settings, load, load, (measurement,))


def test_the_json_holds_samples_and_ratios(report: Report, tmp_path: Path) -> None:
    report.write(tmp_path / "report.json")
    data: dict[str, Any] = json.loads((tmp_path / "report.json").read_text())
    assert data["format"] == 2
    assert data["over_best_rival"] == pytest.approx(1.5)
    assert data["load_start"] == {"average": [0.1, 0.2, 0.3], "processes": [["other", 0.5]]}
    (mlp,) = data["measurements"]
    assert mlp["best_rival"] == "inductor"
    assert mlp["over_best_rival"] == {"median": 1.5, "low": 1.5, "high": 1.5}
    assert mlp["over_eager"]["median"] == 2.0
    assert [o["status"] for o in mlp["outcomes"]] == ["ok", "ok", "absent", "ok"]
    assert mlp["outcomes"][3]["seconds"] == [2.0, 2.0, 4.0]
    assert mlp["outcomes"][3]["share"] == 0.25


@pytest.mark.parametrize("shown", [table.models, table.kernels])
def test_the_tables_show_every_subject(report: Report, shown: Any) -> None:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(shown(report))
    text = console.export_text()
    assert "mlp" in text
    assert "1.50" in text or "2.00 (2.00-2.00)" in text
    assert "others at work: other 50%" in text
    assert ("absent: openvino is not installed" in text) == (shown is table.models)


def test_the_plot_is_svg_with_every_system_that_ran(report: Report, tmp_path: Path) -> None:
    plot.write(report, tmp_path / "plot.svg")
    texts = [e.text for e in ElementTree.parse(tmp_path / "plot.svg").iter() if e.text and e.text.strip()]
    assert "mlp, effc: 2.00" in texts
    assert "mlp, inductor: 1.33" in texts
    assert not any("mlp, openvino" in t for t in texts)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "resnet51"], "unknown model 'resnet51': did you mean 'resnet5"),
        (["--models", ","], "no model is named in ','"),
        (["--systems", "effc,inductr"], "unknown system 'inductr': did you mean 'inductor'?"),
        (["--kernels", "--models", "softmx"], "unknown kernel 'softmx': did you mean 'softmax'?"),
        (["--device", "cuda"], "--device cuda: torch"),
        (["--kernels", "--small"], "--small is of models"),
        (
            ["--kernels", "--dtype", "int8", "--models", "int8 product M=1"],
            "are compressed as they are: leave --dtype int8 out",
        ),
        (["--threads", "0"], "--threads must be between 1 and"),
        (["--rounds", "1"], "--rounds must be at least 2"),
        (["--plot", "speed.png"], "--plot writes SVG: speed.png does not end in .svg"),
        (["--json", "no/such/folder/x.json"], "there is no folder"),
    ],
)
def test_a_wrong_argument_is_one_clear_error(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["bench", *arguments]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert len(err.splitlines()) == 1


#: The first of a family is its smallest.
FIRST = {name.partition("/")[0]: name for name in reversed(kernels.KERNELS)}


@pytest.mark.parametrize("name", FIRST.values())
def test_kernels_are_the_same_each_time(name: str) -> None:
    first, second = kernels.build(name), kernels.build(name)
    with torch.no_grad():
        assert torch.equal(first.module(*first.inputs(0, 0)), second.module(*second.inputs(0, 0)))


def test_no_kernel_hides_another_of_its_name() -> None:
    parts = (attention, compressed, contractions, convolutions, moves, pointwise, quantized, rows)
    assert sum(len(list(part.kernels())) for part in parts) == len(kernels.KERNELS)


def test_a_causal_kernel_is_the_work_below_its_diagonal() -> None:
    heads, length, size = 12, 128, 64
    found = kernels.KERNELS["attention causal/12x128x128x64"].flops
    assert found == sum(4 * heads * size * (query + 1) for query in range(length))


@pytest.mark.parametrize(
    ("name", "flops"),
    [
        ("attention/12x128x128x64", 4 * 12 * 128 * 128 * 64),
        ("attention grouped decode/9/3x1x1024x64", 4 * 9 * 1024 * 64),
        ("conv3x3 4 groups/128x56x56", 2 * 128 * 56 * 56 * 32 * 9),
        ("conv transposed/128x28x28", 2 * 64 * 56 * 56 * 128),
        ("depthwise7x7/384x14x14", 2 * 384 * 14 * 14 * 49),
        ("conv1d/256x512", 2 * 256 * 512 * 256 * 3),
        ("int8 conv3x3/64x56x56", 2 * 64 * 56 * 56 * 64 * 9),
        ("int4 weights M=1/576x49152", 2 * 576 * 49152),
    ],
)
def test_the_work_of_kernels(name: str, flops: int) -> None:
    """By hand, products with padding included; a stride of two leaves a transposed 2x2 one product a channel."""
    case = kernels.build(name)
    assert work_of(case.module, case.inputs(0, 0)).flops == flops
    assert kernels.KERNELS[name].flops in (None, flops)


def test_codes_count_as_the_bits_that_they_need() -> None:
    n, k, floats = 49152, 576, 4 * (49152 * 9 + 576 + 49152)
    assert kernels.KERNELS["int4 weights M=1/576x49152"].bytes == n * k // 2 + floats
    assert kernels.KERNELS["int8 product M=128/768x3072"].flops == 2 * 128 * 768 * 3072


def test_products_with_zeros_are_no_work() -> None:
    assert kernels.KERNELS["1x16 80% conv1x1/512x14x14"].flops == 2 * round(512 * 512 * 14 * 14 * 0.2)
    assert kernels.KERNELS["16x1 80% conv3x3 stride 2/128x56x56"].flops == 2 * round(128 * 128 * 9 * 28 * 28 * 0.2)


@pytest.mark.parametrize(
    "name", ["2:4 linear M=1/576x1536", "1x16 80% conv1x1/512x14x14", "unstructured 90% conv1x1/512x14x14"]
)
def test_effc_is_told_of_zeros(name: str) -> None:
    """And its kernel leaves them out; eager runs the same layer."""
    torch._dynamo.reset()
    kernel, (module, inputs) = kernels.KERNELS[name], Subject("kernel", name).build()
    zeros = float((module.get_parameter("weight") == 0).double().mean())
    with torch.no_grad(), record() as recording:
        found = SYSTEMS["effc"].prepare(module, inputs, replace(FLOAT32, passes=kernel.passes))()
        assert relative_error(found, [module.double()(*(i.double() for i in inputs))]) < 1e-6
    assert zeros == pytest.approx(0.5 if "2:4" in name else 0.9 if "90%" in name else 0.8, abs=0.01)
    assert any(o.sparsity for program, _ in recording.programs for spec in program.kernels for o in spec.operands)


def test_eager_runs_the_float_layer_where_torch_has_no_kernel() -> None:
    subject = Subject("kernel", "int4 weights M=1/576x49152")
    (coded, inputs), (dense, same) = subject.build(), subject.build(dense=True)
    assert isinstance(coded, quantized.CodedLinear)
    assert isinstance(dense, nn.Linear)
    assert torch.equal(inputs[0], same[0])
    coded, dense = (Subject("kernel", "int8 product M=1/768x768").build(dense=d)[0] for d in (False, True))
    assert type(coded) is type(dense)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--models", "mlp", "--small"], ["--kernels", "--models", "softmax/128x768"]])
def test_a_measurement_from_end_to_end(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out.json"
    assert cli.main(["bench", *arguments, "--systems", "eager,effc", "--rounds", "2", "--json", str(path)]) == 0
    (found,) = json.loads(path.read_text())["measurements"]
    for one in found["outcomes"]:
        assert one["status"] == "ok"
        assert len(one["seconds"]) == 2
        assert one["error"] < 1e-6
        assert 0 < one["share"] < 2
        assert one["memory"] > 1 << 20
    assert found["over_best_rival"]["median"] > 0
    assert "geometric mean" in capsys.readouterr().out
