"""What compresses a model, for a GPU that is not there: forms are made of real weights, on the CPU; the graph holds them on its device, and
its kernels run in the interpreter, against float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from gpu_programs import watched
from test_gpu_devices import CUDA, Gpus, Traced
from torch import Tensor, nn
from torch.nn import functional as F

import effc
from effc.compiler.capture import backend
from effc.compiler.capture.graph import GraphCompiler
from effc.compiler.capture.parameters import static_names
from effc.compiler.compress import writer
from effc.compiler.compress.forms import steps_of
from effc.compiler.ir.options import Options


class Compressing(Traced):
    """Its parameters have values when it is compiled: those of ``model``. Regions are compared with float64 (``check``)."""

    def __init__(self, model: nn.Module, inputs: list[tuple[Tensor, str]], gpus: Gpus, **passes: Any) -> None:
        super().__init__(model, inputs, gpus, passes=passes, fallback="error", check=True)

    def _backend(self, options: Options) -> Callable[..., Any]:
        def compile_graph(gm: torch.fx.GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
            names = self.statics = static_names(gm)
            given = self._filled(example_inputs)
            build = backend.builder(options)
            compiler = GraphCompiler(names, options, build, given, steps_of(options), lambda: self.gpus)
            self.calls.append(backend.through_aot(gm, example_inputs, compiler.compile))
            return gm.forward

        return compile_graph

    def _filled(self, inputs: list[Any]) -> list[Any]:
        """Dynamo's, the model's parameters in their places."""
        values = dict(self.model.named_parameters())
        return [values[self.statics[i]].detach() if i in self.statics else x for i, x in enumerate(inputs)]

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        (call,), rest = self.calls, iter(inputs)
        count = len(inputs) + len(self.statics)
        with torch.no_grad():
            results: list[Tensor] = call(
                *self._filled([None if i in self.statics else next(rest) for i in range(count)])
            )
        return results


@pytest.fixture(autouse=True)
def placed(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """Where the graph's constants would be; they stay on the CPU, where the interpreter reads them."""
    found: list[torch.device] = []

    def moved(tensor: Tensor, device: torch.device) -> Tensor:
        assert tensor.device.type == "cpu"
        found.append(device)
        return tensor

    monkeypatch.setattr(writer, "moved", moved)
    return found


def mlp(width: int = 48, hidden: int = 96) -> nn.Module:
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)).eval()


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 1), nn.ReLU(), nn.Conv2d(32, 16, 3, padding=1)
    ).eval()


class Gated(nn.Module):
    def __init__(self, width: int = 32, hidden: int = 64) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return found


def compressed(model: nn.Module, x: Tensor, **passes: Any) -> tuple[Compressing, Tensor]:
    """Its result, every region of which `check` has compared."""
    gpus = Gpus()
    traced = Compressing(model, [(x, "cuda:0")], gpus, **passes)
    with watched(gpus.found[CUDA]):
        (result,) = traced(x)
    return traced, result


def error(model: nn.Module, x: Tensor, result: Tensor) -> float:
    with torch.no_grad():
        want = model(x).double()
    return float((result.double() - want).norm() / want.norm())


_WEIGHTS: dict[str, tuple[dict[str, Any], float, float]] = {
    "int8": ({"quantize": {"weights": "int8"}}, 0.0, 0.02),
    "int4 by groups": ({"quantize": {"weights": "int4", "group": 16}}, 0.01, 0.3),
    "nf4": ({"quantize": {"weights": "nf4", "group": 16}}, 0.01, 0.3),
    "rank": ({"low_rank": {"rank": 16}}, 0.01, 0.9),
    "factors of codes": ({"low_rank": {"rank": 16}, "quantize": {"weights": "int8"}}, 0.01, 0.9),
    "unstructured": ({"sparsity": {"pattern": "unstructured", "sparsity": 0.5}}, 0.01, 0.9),
    "2:4": ({"sparsity": {"pattern": "2:4"}}, 0.01, 0.9),
    "16x1": ({"sparsity": {"pattern": "16x1", "sparsity": 0.75}}, 0.01, 1.0),
    "1x16": ({"sparsity": {"pattern": "1x16", "sparsity": 0.75}}, 0.01, 1.0),
    "16x16": ({"sparsity": {"pattern": "16x16", "sparsity": 0.75}}, 0.01, 1.0),
    "channels": ({"sparsity": {"pattern": "channel", "sparsity": 0.25}}, 0.01, 1.0),
}


@pytest.mark.parametrize(
    ("name", "rows"), [*((name, 19) for name in _WEIGHTS), ("int4 by groups", 1), ("rank", 1), ("16x1", 1)]
)
def test_weights_in_other_forms(name: str, rows: int, placed: list[torch.device]) -> None:
    passes, least, most = _WEIGHTS[name]
    model, x = mlp(), torch.randn(rows, 48)
    _, result = compressed(model, x, **passes)
    assert set(placed) == {CUDA}
    assert least <= error(model, x, result) < most


@pytest.mark.parametrize("activations", ["token", "tensor"])
def test_activations_that_are_bytes(activations: str) -> None:
    model, x = mlp(), torch.randn(19, 48)
    calibration = {"calibration": effc.calibrate(model, [(torch.randn(64, 48),)])} if activations == "tensor" else {}
    _, result = compressed(model, x, quantize={"activations": activations, **calibration})
    assert 1e-4 < error(model, x, result) < 0.1


@pytest.mark.parametrize(
    "passes",
    [
        {"low_rank": {"rank": 8}},
        {"sparsity": {"pattern": "16xkernel", "sparsity": 0.5}},
        {"sparsity": {"pattern": "channel", "sparsity": 0.25}},
    ],
    ids=["rank", "windows", "channels"],
)
def test_convolutions(passes: dict[str, Any], placed: list[torch.device]) -> None:
    model, x = convolutions(), torch.randn(2, 16, 9, 8)
    _, result = compressed(model, x, **passes)
    assert set(placed) == {CUDA}
    assert 1e-3 < error(model, x, result) < 1


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_methods_that_look_at_activations(method: str) -> None:
    model, x = mlp(), torch.randn(19, 48)
    calibration = effc.calibrate(model, [(torch.randn(256, 48),)])
    chosen = {"pattern": "2:4", "method": method, "calibration": calibration}
    _, result = compressed(model, x, sparsity=chosen)
    assert 0.01 < error(model, x, result) < 0.9


def test_thresholds_of_activations() -> None:
    model, x = Gated().eval(), torch.randn(1, 32)
    calibration = effc.calibrate(model, [(torch.randn(256, 32),)])
    _, result = compressed(model, x, activation_sparsity={"sparsity": 0.5, "calibration": calibration})
    assert 0.001 < error(model, x, result) < 0.9


def test_weights_that_change_run_exactly_and_are_compressed_when_asked() -> None:
    model, x = mlp(), torch.randn(7, 48)
    traced, before = compressed(model, x, low_rank={"rank": 16})
    with torch.no_grad():
        model.get_parameter("0.weight").mul_(1.5)
    with watched(traced.gpus.found[CUDA]), pytest.warns(UserWarning, match="the exact model runs"):
        (exact,) = traced(x)
    assert error(model, x, exact) < 1e-5
    effc.refresh(model)
    with watched(traced.gpus.found[CUDA]):
        (after,) = traced(x)
    assert 0.01 < error(model, x, after) < 0.9
    assert not torch.equal(before, after)
