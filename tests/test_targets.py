"""Whole models compiled for less than this CPU has: AVX2, and x86-64's baseline."""

from __future__ import annotations

import pytest
import torch
import zoo
from exactness import assert_exact

from effc.bench.systems.system import cast
from effc.compiler.capture.recording import record
from effc.compiler.codegen.cpu.target import CHOICE, Target
from effc.compiler.ir.errors import OptionError


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


def chosen(name: str, monkeypatch: pytest.MonkeyPatch) -> Target:
    monkeypatch.setenv(CHOICE, name)
    found: Target = Target.host.__wrapped__()  # what a new process would find
    return found


@pytest.mark.parametrize("name", ["avx2", "x86-64"])
def test_a_lesser_target_can_be_asked_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not Target.host().features >= Target.named(name).features:
        pytest.skip(f"this CPU has no {name}")
    assert chosen(name, monkeypatch) == Target.named(name)
    assert chosen("", monkeypatch) == chosen("host", monkeypatch) == Target.host()


def test_an_unknown_target_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        OptionError, match=r"^EFFC_CPU: unknown CPU target 'avx3': known are host, avx512, avx2, x86-64$"
    ):
        chosen("avx3", monkeypatch)


def test_a_target_that_this_cpu_is_not_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Target, "_of_this_cpu", staticmethod(lambda: Target.named("avx2")))
    with pytest.raises(OptionError, match=r"^EFFC_CPU=avx512: this CPU has no avx512bw, avx512dq, avx512f, avx512vl$"):
        chosen("avx512", monkeypatch)
