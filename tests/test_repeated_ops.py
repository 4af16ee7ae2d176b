"""Ops that a network repeats are traced whole, and taken apart as AOTAutograd takes them apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from exactness import compare
from torch import nn

from effc.compiler.capture import backend, graph, repeated
from effc.compiler.capture.importer import Region, import_region

_MAKERS: dict[str, Callable[[], nn.Module]] = {
    "batch norms": lambda: nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.SiLU(), nn.Conv2d(5, 5, 1), nn.BatchNorm2d(5)
    ),
    "plain batch norm": lambda: nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5, affine=False)),
    "layer norms": lambda: nn.Sequential(
        nn.LayerNorm((7, 7)), nn.GELU(), nn.LayerNorm(7), nn.GELU("tanh"), nn.LayerNorm(7)
    ),
    "layer norm without weights": lambda: nn.LayerNorm(7, elementwise_affine=False),
}


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Of the regions that are compiled."""
    found: list[str] = []

    def imported(*args: Any, **kwargs: Any) -> Region:
        region = import_region(*args, **kwargs)
        found.append(region.text)
        return region

    monkeypatch.setattr(graph, "import_region", imported)
    yield found
    torch._dynamo.reset()


def model(kind: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    made = _MAKERS[kind]()
    for part in made.modules():
        if isinstance(part, nn.BatchNorm2d):
            assert part.running_mean is not None
            assert part.running_var is not None
            nn.init.normal_(part.running_mean)
            nn.init.uniform_(part.running_var, 0.5, 2)
    return made.eval().to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", _MAKERS)
def test_the_graph_is_what_a_trace_of_all_gives(
    kind: str, dtype: torch.dtype, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(2, 3, 7, 7, dtype=dtype)
    with torch.no_grad():
        torch.compile(model(kind, dtype), backend="effc")(x)
        monkeypatch.setattr(backend, "left_whole", lambda table: table)
        torch._dynamo.reset()
        torch.compile(model(kind, dtype), backend="effc")(x)
    first, second = texts
    assert first == second


@pytest.mark.parametrize("kind", _MAKERS)
def test_results(kind: str) -> None:
    of = model(kind)
    with torch.no_grad():
        comparison = compare(of, (torch.randn(2, 3, 7, 7),), torch.compile(of, backend="effc"))
    assert not comparison.problems


def test_alike_ops_are_traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    traced: list[str] = []
    template = repeated._template

    def counted(node: torch.fx.Node, *rest: object) -> torch.fx.Graph:
        traced.append(str(node.target))
        return template(node, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(repeated, "_template", counted)
    layers = [nn.LayerNorm(7), nn.LayerNorm(7), nn.LayerNorm(7, eps=0.1), nn.GELU(), nn.GELU("tanh"), nn.GELU()]
    with torch.no_grad():
        torch.compile(nn.Sequential(*layers).eval(), backend="effc")(torch.randn(3, 7))
    norm, gelu = "aten.native_layer_norm.default", "aten.gelu.default"
    assert traced == [gelu, gelu, norm, norm]


def test_a_weight_is_no_bias() -> None:
    """Though both norms have one parameter of one shape."""
    w, b = torch.randn(2, 7)

    def norms(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return nn.functional.layer_norm(x, (7,), w), nn.functional.layer_norm(x, (7,), None, b)

    x = torch.randn(3, 7)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(norms, backend="effc")(x), norms(x))


def test_an_op_of_symbolic_sizes_is_taken_apart_in_the_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeated, "_template", lambda *_: pytest.fail("one size is not all"))
    compiled = torch.compile(nn.LayerNorm(7), backend="effc", dynamic=True, options={"fallback": "error"})
    with torch.no_grad():
        for rows in (3, 5):
            x = torch.randn(rows, 4, 7)
            torch.testing.assert_close(compiled(x), nn.functional.layer_norm(x, (7,)))


def test_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they are wanted, all is traced apart, so that AOTAutograd may compute it again."""
    monkeypatch.setattr(repeated, "_template", lambda *_: pytest.fail("traced whole"))
    of = model("batch norms")
    x = torch.randn(2, 3, 7, 7)
    expected = torch.autograd.grad(of(x).square().sum(), list(of.parameters()))
    found = torch.autograd.grad(torch.compile(of, backend="effc")(x).square().sum(), list(of.parameters()))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def _tied_norms(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return nn.functional.layer_norm(x, (7,), w, w), nn.functional.layer_norm(x, (7,), w, b)


def _norm_of_alike_results(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return nn.functional.layer_norm(x, (7,), nn.functional.gelu(w), nn.functional.gelu(b))


def _normed_weights(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return nn.functional.layer_norm(w, (7,), w, b), nn.functional.layer_norm(b, (7,), w, x[0])


@pytest.mark.parametrize("function", [_tied_norms, _norm_of_alike_results, _normed_weights])
def test_operands_that_are_one_tensor_or_look_alike(function: Callable[..., Any]) -> None:
    inputs = (torch.randn(3, 7), torch.randn(7), torch.randn(7))
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(function, backend="effc")(*inputs), function(*inputs))


def test_gradients_that_a_model_switches_on() -> None:
    def function(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            return nn.functional.gelu(nn.functional.layer_norm(x, (7,), w, b))

    inputs = (torch.randn(3, 7), torch.randn(7, requires_grad=True), torch.randn(7))
    compiled = torch.compile(function, backend="effc", options={"fallback": "error"})
    with torch.no_grad():
        found, expected = compiled(*inputs), function(*inputs)
    torch.testing.assert_close(found, expected)
    (gradient,), (right,) = (torch.autograd.grad(y.sum(), inputs[1]) for y in (found, expected))
    torch.testing.assert_close(gradient, right)
