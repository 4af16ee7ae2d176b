"""Whole models compiled for less than this CPU has: AVX2, and x86-64's baseline."""

from __future__ import annotations

import pytest
import torch
import zoo
from exactness import assert_exact

from effc.bench.systems.system import cast
from effc.compiler.capture.recording import record
from effc.compiler.codegen.cpu.target import Target


@pytest.fixture(params=["avx2", "x86-64"])
def lesser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a target that stands for the host's in this test."""
    target = Target.named(request.param)
    monkeypatch.setattr(Target, "host", staticmethod(lambda: target))
    return target.name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["mlp", "mobilenet_v2", "convnext_tiny", "bert_base", "llama_decode"])
def test_models(name: str, dtype: torch.dtype, lesser: str) -> None:
    case = zoo.build(name, small=True)
    module, inputs = cast(case.module, case.inputs(5, 0), dtype)
    with torch.no_grad(), record() as recording:
        assert_exact(module, inputs, torch.compile(module, backend="effc"))
    target = Target.host()
    tiles = [k.schedule for program, _ in recording.programs for k in program.kernels if k.schedule.get("mr")]
    assert tiles
    assert all(t["mr"] * t["nr"] * 4 < 16 * target.vector_bytes for t in tiles), f"tiles beyond {lesser}'s 16 registers"
