"""What ``effc bench`` compares: each adapter runs the model that it is given, in its dtype, and says why it is absent."""

from __future__ import annotations

import copy
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from effc.bench.runner import Subject, relative_error
from effc.bench.systems import SYSTEMS, Setting

FLOAT32 = Setting(2, "float32")
BFLOAT16 = Setting(2, "bfloat16")
INT8 = Setting(2, "int8")


@pytest.fixture(autouse=True)
def _inductor_as_it_was() -> Iterator[None]:
    """Inductor's adapter sets ``freezing`` for its process, in which a benchmark runs it alone."""
    from torch._inductor import config

    with config.patch(freezing=config.freezing):
        yield


@pytest.mark.parametrize("name", ["eager", "effc"])
@pytest.mark.parametrize(("setting", "bound"), [(FLOAT32, 1e-6), (BFLOAT16, 1e-2)])
def test_adapters_run_the_model_in_the_dtype(name: str, setting: Setting, bound: float) -> None:
    torch._dynamo.reset()
    module, x = nn.Sequential(nn.Linear(20, 9), nn.Tanh()).eval(), torch.randn(5, 20)
    with torch.no_grad():
        exact = [module.double()(x.double())]
        assert SYSTEMS[name].absent(setting) is None
        results = SYSTEMS[name].prepare(module.float(), (x,), setting)()
    assert [str(r.dtype) for r in results] == [f"torch.{setting.dtype}"]
    assert relative_error(results, exact) < bound


@pytest.mark.parametrize(("name", "package"), [("openvino", "openvino"), ("onnxruntime", "onnxruntime")])
def test_rivals_agree_with_float64(name: str, package: str) -> None:
    pytest.importorskip(package)
    module, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval(), torch.randn(1, 3, 9, 9)
    with torch.no_grad():
        exact = [module.double()(x.double())]
        results = SYSTEMS[name].prepare(module.float(), (x,), FLOAT32)()
    assert relative_error(results, exact) < 1e-6


def test_the_saved_model_is_called_after_its_folder_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    module, x = nn.Sequential(nn.Linear(33, 65), nn.GELU()).eval(), torch.randn(7, 33)
    with torch.no_grad():
        call = SYSTEMS["effc-saved"].prepare(module, (x,), FLOAT32)
        assert not list(tmp_path.glob("effc-bench-*"))
        assert relative_error(call(), [module.double()(x.double())]) < 1e-6


@pytest.mark.parametrize(
    ("name", "packages"),
    [
        ("effc", ["torchao"]),
        ("effc-saved", ["torchao"]),
        ("effc-quantize", []),
        ("inductor-freezing", ["torchao"]),
        ("openvino", ["openvino", "nncf"]),
    ],
)
def test_int8_is_near_float64_and_is_int8(name: str, packages: list[str]) -> None:
    for package in packages:
        pytest.importorskip(package)
    if (reason := SYSTEMS[name].absent(INT8)) is not None:
        pytest.skip(reason)
    torch._dynamo.reset()
    torch.manual_seed(3)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 7 * 7, 10)).eval()
    x, *calibration = torch.randn(5, 1, 3, 9, 9)
    with torch.no_grad():
        exact = [copy.deepcopy(module).double()(x.double())]
        results = SYSTEMS[name].prepare(module, (x,), INT8, [(batch,) for batch in calibration])()
    assert [r.dtype for r in results] == [torch.float32]
    assert 1e-4 < relative_error(results, exact) < 5e-2


@pytest.mark.skipif(not shutil.which("g++"), reason="Inductor needs a C++ compiler")
def test_inductor_runs_int8_in_its_kernels_for_int8() -> None:
    pytest.importorskip("torchao")
    torch._dynamo.reset()
    module, x = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16)).eval(), torch.randn(4, 64)
    with torch.no_grad():
        call = SYSTEMS["inductor-freezing"].prepare(module, (x,), INT8, [(x,)])
        call()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            call()
    assert sum("qlinear" in event.name for event in profile.events()) >= 2


def test_calibration_is_the_same_each_time_and_not_what_is_measured() -> None:
    subject = Subject("model", "mlp", small=True)
    first, second = subject.calibration(), subject.calibration()
    _, inputs = subject.build()
    assert len(first) > 1
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, second, strict=True))
    assert not any(torch.equal(batch[0], inputs[0]) for batch in first)


def test_a_rival_that_is_not_installed_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import PackageNotFoundError

    def version(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", version)
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert SYSTEMS["openvino"].absent(FLOAT32) == "openvino is not installed"
    assert SYSTEMS["onnxruntime"].absent(FLOAT32) == "onnxruntime is not installed"
    assert SYSTEMS["onnxruntime"].absent(BFLOAT16) == "its CPU kernels do not compute in bfloat16"
    assert "C++ compiler" in str(SYSTEMS["inductor"].absent(FLOAT32))
    assert SYSTEMS["effc"].absent(FLOAT32) is None
    assert SYSTEMS["effc"].absent(INT8) == "torchao is not installed"
    monkeypatch.setattr("importlib.metadata.version", lambda name: version(name) if name == "nncf" else "1")
    assert SYSTEMS["openvino"].absent(FLOAT32) is None
    assert SYSTEMS["openvino"].absent(INT8) == "nncf is not installed"


@pytest.mark.parametrize("bits", ["int4", "int8"])
def test_weights_of_few_bits_are_in_bfloat16(bits: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchao's and ours, of the same grain. torchao is a stand-in: its kernels are for GPUs."""
    asked: list[tuple[str, dict[str, Any]]] = []

    def config(name: str) -> Callable[..., str]:
        def made(**options: Any) -> str:
            asked.append((name, options))
            return name

        return made

    def quantize_(module: nn.Module, chosen: str) -> None:
        assert next(module.parameters()).dtype == torch.bfloat16

    stand_in = SimpleNamespace(
        Int4WeightOnlyConfig=config("int4"), Int8WeightOnlyConfig=config("int8"), quantize_=quantize_
    )
    monkeypatch.setitem(sys.modules, "torchao", SimpleNamespace(quantization=stand_in))
    monkeypatch.setitem(sys.modules, "torchao.quantization", stand_in)

    def compiled(module: nn.Module, **options: Any) -> nn.Module:
        asked.append(("", options))
        return module

    monkeypatch.setattr(torch, "compile", compiled)
    for name in (f"torchao-{bits}", f"effc-{bits}"):
        assert "bfloat16" in str(SYSTEMS[name].absent(FLOAT32)) or "torchao" in str(SYSTEMS[name].absent(FLOAT32))
        SYSTEMS[name].prepare(nn.Linear(16, 8), (torch.randn(3, 16),), BFLOAT16)()
    group = {"group_size": 128, "int4_packing_format": "tile_packed_to_4d"} if bits == "int4" else {}
    passes = {"quantize": {"weights": bits, **({"group": 128} if group else {})}}
    assert asked == [(bits, group), ("", {}), ("", {"backend": "effc", "options": {"passes": passes}})]
