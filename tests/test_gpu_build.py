"""Programs and code for a GPU as they are built: what they depend on, what is kept, what is imported for it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import astuple
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from gpu_programs import InterpretingGpu, TextTools, built_on, graph_of, host
from stub_cuda import StubCuda, StubGpu
from torch import nn
from triton_here import needs_triton

from effc.compiler.codegen.gpu.target import GpuTarget
from effc.compiler.gpu import build as gpu_build
from effc.compiler.gpu.build import build_gpu
from effc.compiler.toolchain import Toolchain, toolchain
from effc.runtime.cache import Cache


@needs_triton
def test_programs_and_cubins_are_built_by_workers_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In processes of their own; a second build asks none of them for anything."""
    text = graph_of(nn.Sequential(nn.Linear(64, 64), nn.ReLU()), torch.randn(32, 64))
    cache, gpu = Cache(tmp_path / "cache"), StubGpu(StubCuda())
    build = partial(build_gpu, options={}, cache=cache, device=gpu, host=host())
    first = build(text, tools=toolchain()).executable
    (kernel,) = first.code[0].launches
    assert kernel.image[:4] == b"\x7fELF"
    # three operands and the result, scratch memory, the error cell; behind them triton's own
    assert kernel.parameters - 6 in (1, 2)
    asked: list[str] = []

    class Counting(TextTools):
        def request(self, kind: str, payload: Any) -> Any:
            asked.append(kind)
            return super().request(kind, payload)

    tools = cast(Toolchain, Counting())
    second = build(text, tools=tools)
    assert [astuple(c) for c in second.executable.code] == [astuple(c) for c in first.code]
    assert (asked, second.report.from_cache) == ([], True)
    other = text.replace("@region", "@other")
    build(other.replace("module @graph", "module @another"), tools=tools)
    assert asked == ["lower"], "another program of the same kernels"
    monkeypatch.setattr(gpu_build, "triton_version", lambda: "9.9")
    build(text, tools=tools)
    assert "gpu" in asked, "another triton compiles anew"


def test_a_graph_is_lowered_for_the_device_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its processors and torch's settings decide what becomes one kernel, as they do what is emitted."""
    text, gpu, seen = (
        graph_of(nn.Sequential(nn.Linear(48, 24), nn.Linear(24, 48)), torch.randn(70, 48)),
        InterpretingGpu(),
        [],
    )
    gpu.processors = 57
    torch.backends.cudnn.conv.fp32_precision = "tf32"  # type: ignore[attr-defined]  # exact_convolutions puts it back
    monkeypatch.setattr(gpu_build, "reads_descriptors", lambda capability: True)

    def saved(pair: object, target: GpuTarget) -> float:
        seen.append(target)
        return 0.0

    monkeypatch.setattr("effc.compiler.pipeline.gpu_pairs.saved", saved)
    built_on(gpu, text)
    assert seen == [GpuTarget(90, 57, tf32=False, tf32_convolutions=True, descriptors=True)]


@pytest.mark.parametrize("setting", ["precision", "allow_tf32", "fp32_precision"])
def test_torchs_setting_of_tf32_is_part_of_the_key(setting: str, tmp_path: Path) -> None:
    text = graph_of(nn.Linear(64, 64), torch.randn(32, 64))
    cache, gpu = Cache(tmp_path / "cache"), InterpretingGpu()
    build = partial(
        build_gpu, text, options={}, cache=cache, device=gpu, host=host(), tools=cast(Toolchain, TextTools())
    )
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        for allowed in (False, True, False):
            match setting:
                case "precision":
                    torch.set_float32_matmul_precision("high" if allowed else "highest")
                case "allow_tf32":
                    torch.backends.cuda.matmul.allow_tf32 = allowed
                case _:
                    torch.backends.cuda.matmul.fp32_precision = "tf32" if allowed else "ieee"
            build()
            assert ("inputPrecision = 0" in gpu.kernels[-1][1]) == allowed
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def test_building_for_a_gpu_imports_neither_mlir_nor_triton() -> None:
    code = "import sys, effc.compiler.gpu.build; sys.exit(any(m.split('.')[0] in ('torch_mlir', 'triton') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0


def test_lowering_for_a_cpu_imports_no_emitter_for_gpus() -> None:
    code = "import sys, effc.compiler.pipeline.lower; print(*(m for m in sys.modules if m.startswith('effc.compiler.codegen.gpu.')))"
    done = subprocess.run([sys.executable, "-P", "-c", code], check=True, capture_output=True, text=True)
    assert {name.rpartition(".")[2] for name in done.stdout.split()} == {"hardware", "target"}
