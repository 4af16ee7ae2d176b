"""``check=True`` names the kernel at fault; ``kernel_reference`` repeats what kernels compute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from effc.compiler.capture import backend, check, graph
from effc.compiler.ir.errors import VerificationError
from effc.compiler.ir.program import Program
from effc.compiler.ir.spec import KernelSpec


def _renamed(spec: KernelSpec, old: str, new: str) -> KernelSpec:
    return replace(spec, body=tuple(replace(i, op=new) if i.op == old else i for i in spec.body))


@pytest.fixture
def miscompiled_tanh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Code computes a cosine where its spec says tanh."""
    real = backend.builder

    def broken(options: Any) -> Any:
        make = real(options)

        def build(text: str) -> Any:
            built = make(text.replace("math.tanh", "math.cos"))
            program: Program = built.executable.program
            said = replace(program, kernels=tuple(_renamed(k, "math.cos", "math.tanh") for k in program.kernels))
            built.executable.program = built.executable._stepper.program = said
            return built

        return build

    monkeypatch.setattr(backend, "builder", broken)


@pytest.mark.usefixtures("miscompiled_tanh")
def test_the_kernel_at_fault_is_named(cache_dir: object) -> None:
    torch._dynamo.reset()

    def model(x: Tensor) -> Tensor:
        y = torch.softmax(x, -1) @ x.mT
        z = torch.tanh(y) @ y
        return torch.softmax(z, -1)

    compiled = torch.compile(model, backend="effc", options={"check": True})
    with torch.no_grad(), pytest.raises(VerificationError) as caught:
        compiled(torch.randn(9, 9))
    line = model.__code__.co_firstlineno + 1  # the product, into which the tanh is fused
    assert "The first kernel that is outside its bound is number " in str(caught.value)
    assert f"contract+cos at test_check.py:{line}: relative L2 error" in str(caught.value)


class _All(check._Watch):
    """Repeats all kernels; counts those that cannot be."""

    seen = 0

    def after(self, step: Any) -> None:
        super().after(step)
        type(self).seen += 1


@pytest.mark.parametrize(
    ("model", "shape", "skips"),
    [
        (nn.Sequential(nn.Linear(33, 65), nn.GELU(), nn.LayerNorm(65), nn.Linear(65, 10), nn.Softmax(-1)), (7, 33), 0),
        (nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, 2, groups=2)), (2, 3, 16, 16), 0),
        (lambda x: torch.where(x > 0, x.exp(), x.log1p())[:, ::2].sum(0) + x.int().amax(), (5, 12), 0),
        (lambda x: x.cumsum(1) + 1, (5, 12), 1),
    ],
    ids=["linear", "convolution", "pointwise", "scan"],
)  # fmt: skip
def test_right_kernels_are_found_right(
    model: Callable[[Tensor], Tensor], shape: tuple[int, ...], skips: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch._dynamo.reset()
    watches: list[_All] = []

    def watching(call: Any, executable: Any, *_: object) -> Any:
        def run(symbols: Any, tensors: Any) -> Any:
            watches.append(_All(executable.program, tensors))
            return executable.run_stepwise(symbols, tensors, watches[-1])

        return run

    monkeypatch.setattr(graph, "checked", watching)
    with torch.no_grad():
        torch.compile(model, backend="effc", options={"check": True})(torch.rand(shape))
    assert watches
    assert _All.seen > 0
    assert sum(w.skipped for w in watches) == skips


@pytest.mark.parametrize("seed", [54, 95, 122])
def test_a_sum_whose_cancellation_few_probes_miss_is_right(seed: int, cache_dir: object) -> None:
    """Of 4,096 sums, some move little in all of the first few probes, though their terms cancel."""
    torch._dynamo.reset()
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, 2, groups=2))
    x = torch.rand(2, 3, 16, 16)
    watches: list[check._Watch] = []

    def watching(call: Any, executable: Any, *_: object) -> Any:
        def run(symbols: Any, tensors: Any) -> Any:
            watches.append(check._Watch(executable.program, tensors))
            return executable.run_stepwise(symbols, tensors, watches[-1])

        return run

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(graph, "checked", watching)
        torch.compile(model, backend="effc", options={"check": True})(x)
    assert watches
    assert not any(w.found or w.skipped for w in watches)
