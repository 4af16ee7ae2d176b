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


def _miscompiled(monkeypatch: pytest.MonkeyPatch, said: str, done: str) -> None:
    """Code computes ``done`` where its spec says ``said``."""
    real = backend.builder

    def broken(options: Any) -> Any:
        make = real(options)

        def build(text: str) -> Any:
            built = make(text.replace(said, done))
            program: Program = built.executable.program
            claimed = replace(program, kernels=tuple(_renamed(k, done, said) for k in program.kernels))
            built.executable.program = built.executable._stepper.program = claimed
            return built

        return build

    monkeypatch.setattr(backend, "builder", broken)


def test_the_kernel_at_fault_is_named(cache_dir: object, monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    _miscompiled(monkeypatch, "math.tanh", "math.cos")

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


def test_the_kernel_at_fault_of_a_backward_is_named(cache_dir: object, monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    _miscompiled(monkeypatch, "math.cos", "math.exp")

    def model(x: Tensor, w: Tensor) -> Tensor:
        return torch.sin(x @ w) @ w.mT

    out = torch.compile(model, backend="effc", options={"check": True})(
        torch.randn(9, 9), torch.randn(9, 9).requires_grad_()
    )
    with pytest.raises(VerificationError) as caught:
        out.sum().backward()
    line = model.__code__.co_firstlineno + 1
    assert "The first kernel that is outside its bound is number " in str(caught.value)
    assert f"at test_check.py:{line}: " in str(caught.value)


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
    torch.manual_seed(0)
    for layer in model if isinstance(model, nn.Sequential) else ():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            layer.reset_parameters()
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


@pytest.mark.parametrize("seed", [54, 95, 122, 180])
def test_a_sum_whose_cancellation_few_probes_miss_is_right(seed: int, cache_dir: object) -> None:
    """Of 4,096 sums, some move little in all of the first few probes, though their terms cancel; partial sums of some (seed 180)
    are several times the whole.
    """
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


@pytest.mark.parametrize(
    "model",
    [nn.Linear(512, 64), nn.Conv2d(16, 32, 3, padding=1), lambda x: (x * 1.5 + x.exp()).sigmoid(), lambda x: x.softmax(-1)],
    ids=["linear", "convolution", "pointwise", "softmax"],
)  # fmt: skip
@pytest.mark.parametrize("seed", range(3))
def test_one_element_off_by_two_hundred_thousandths_is_found(
    model: Callable[[Tensor], Tensor], seed: int, cache_dir: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wrong element is of median size: no cancellation hides it, and its own rounding, maybe to the other side, is small beside it."""
    torch._dynamo.reset()
    torch.manual_seed(seed)
    if isinstance(model, nn.Module):
        model.reset_parameters()  # type: ignore[operator]
    real = check.checked

    def spoiled(call: Any, *others: Any) -> Any:
        def run(symbols: Any, tensors: Any) -> Any:
            results = call(symbols, tensors)
            flat = results[0].as_strided((results[0].numel(),), (1,))
            flat[flat.abs().median(0).indices] *= 1 + 2e-5
            return results

        return real(run, *others)

    monkeypatch.setattr(graph, "checked", spoiled)
    x = torch.randn(2, 16, 9, 9) if isinstance(model, nn.Conv2d) else torch.randn(33, 512)
    with torch.no_grad(), pytest.raises(VerificationError, match=r"is wrong: (element|relative L2 error)"):
        torch.compile(model, backend="effc", options={"check": True})(x)


def test_a_side_of_zero_within_rounding_is_a_toss_up() -> None:
    """A mask of which side of 0 a value lies on may differ where rounding decides, and nowhere else."""
    true, ours = torch.tensor([True, False, True]), torch.tensor([False, False, True])
    flips = [true.clone() for _ in range(4)]
    assert check._problem(ours, true, true, flips) == "1 of 3 elements differ from ATen's"
    flips[2][0] = False
    assert check._problem(ours, true, true, flips) is None


def test_quantized_layers_are_found_right() -> None:
    """Static ones in integers, and weights as codes by groups."""
    import torch.ao.quantization.fx._decomposed  # defines the ops

    ops, weight, scales = (
        torch.ops.quantized_decomposed,
        torch.randint(-8, 8, (24, 64), dtype=torch.int8),
        torch.rand(24, 2),
    )

    def function(x: torch.Tensor) -> torch.Tensor:
        q = ops.quantize_per_tensor(x, 0.05, 100, 0, 255, torch.uint8)
        d = ops.dequantize_per_tensor(q, 0.05, 100, 0, 255, torch.uint8)
        first = ops.dequantize_per_channel(weight, scales[:, 0], None, 0, -8, 7, torch.int8)
        second = ops.dequantize_per_channel_group(weight, scales, None, -8, 7, torch.int8, 32, torch.float32)
        y = torch.nn.functional.linear(d, first).relu()
        return torch.nn.functional.linear(torch.cat([y, y, y], 1)[:, :64], second)

    with torch.no_grad():
        torch.compile(function, backend="effc", options={"check": True})(torch.randn(5, 64))
