"""Toolchain processes that start before AOTAutograd traces."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.fx import GraphModule

from effc.compiler.capture import ahead
from effc.compiler.ir.errors import ToolchainCrash
from effc.runtime.cache import Cache


def scaled(x: torch.Tensor) -> torch.Tensor:
    return torch.relu(x) * 3


def shifted(x: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x) * 3


def graph(function: Callable[..., Any], *inputs: torch.Tensor) -> GraphModule:
    """Dynamo's, captured anew."""
    found: list[GraphModule] = []

    def backend(gm: GraphModule, _: Any) -> Callable[..., Any]:
        found.append(gm)
        return gm.forward

    torch._dynamo.reset()
    torch.compile(function, backend=backend, dynamic=False)(*inputs)
    return found[0]


@pytest.fixture
def warmed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows when processes are started."""
    calls: list[int] = []
    monkeypatch.setattr(ahead, "toolchain", lambda: SimpleNamespace(warm=lambda: calls.append(1)))
    return calls


def test_only_a_graph_that_was_not_met_starts_processes(tmp_path: Path, warmed: list[int]) -> None:
    x = torch.randn(5, 3)
    assert ahead.start_ahead(graph(scaled, x), {}, Cache(tmp_path))
    assert not ahead.start_ahead(graph(scaled, torch.randn(5, 3)), {}, Cache(tmp_path)), "the same graph"
    for function, given, code in (
        (shifted, x, {}),
        (scaled, torch.randn(7, 3), {}),
        (scaled, x.double(), {}),
        (scaled, x, {"fast": True}),
    ):
        assert ahead.start_ahead(graph(function, given), code, Cache(tmp_path))
    assert len(warmed) == 5


def test_a_process_that_does_not_start_is_nothing_to_fail_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def warm() -> None:
        raise ToolchainCrash("no such file")

    monkeypatch.setattr(ahead, "toolchain", lambda: SimpleNamespace(warm=warm))
    assert not ahead.start_ahead(graph(scaled, torch.randn(2)), {}, Cache(tmp_path))


def test_a_warm_cache_starts_none(tmp_path: Path, warmed: list[int]) -> None:
    options: dict[str, Any] = {"cache_dir": str(tmp_path)}
    x = torch.randn(13, 7)
    for _ in range(2):
        torch._dynamo.reset()
        torch.testing.assert_close(torch.compile(scaled, backend="effc", options=options)(x), scaled(x))
    assert len(warmed) == 1
