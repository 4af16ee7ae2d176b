"""Compiling without other processes: slower, but a test can replace what decides, and nothing is cached."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch

from effc.compiler.build import Built, build
from effc.compiler.capture.backend import compile_with
from effc.compiler.ir.options import Options
from effc.compiler.toolchain import Toolchain
from effc.compiler.worker import HANDLERS


class _Here:
    """The part of a `Toolchain` that builds programs."""

    def warm(self) -> None:
        pass

    def request(self, kind: str, payload: Mapping[str, Any]) -> Any:
        return json.loads(json.dumps(HANDLERS[kind](payload)))

    def map(self, requests: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Any]:
        return [self.request(*request) for request in requests]


def compiled_here(
    model: Callable[..., Any], seen: Callable[[Built], object] = lambda built: None, dynamic: bool = False
) -> Callable[..., Any]:
    """``model`` compiled as a whole; ``seen`` is told of each program that was built."""

    def make(text: str) -> Built:
        built = build(text, options={}, cache=None, tools=cast(Toolchain, _Here()))
        seen(built)
        return built

    def backend(gm: Any, inputs: list[Any]) -> Any:
        return compile_with(gm, inputs, Options(fallback="error"), lambda options: make)

    compiled: Callable[..., Any] = torch.compile(model, backend=backend, dynamic=dynamic, fullgraph=True)
    return compiled
