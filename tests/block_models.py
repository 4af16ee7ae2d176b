"""Compiling in this process, so that a test decides which kernels become blocks, and of how many lines tiles are."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from effc.compiler import toolchain
from effc.compiler.capture import record
from effc.compiler.codegen.cpu.block.choice import Block, block_of
from effc.compiler.ir.program import Program
from effc.compiler.ir.spec import KernelSpec
from effc.compiler.pipeline import assemble, blocks
from effc.compiler.worker import answer


class _Here:
    """Answers what a pool of toolchain processes would."""

    def request(self, kind: str, payload: Mapping[str, Any]) -> Any:
        reply = answer(json.dumps({"kind": kind, "payload": payload}).encode())
        assert "error" not in reply, reply
        return reply["result"]

    def map(self, requests: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Any]:
        return [self.request(*request) for request in requests]

    def warm(self) -> None:
        """There is nothing to start."""


class Forced:
    """Makes a block of as many kernels as can be one, with tiles of ``lines``. ``refused``: why others are none."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, lines: int | None = None) -> None:
        self.refused: set[str] = set()
        monkeypatch.setattr(toolchain, "_shared", _Here())
        monkeypatch.setattr(blocks, "saved", lambda found: float(len(found.spec.stages)))
        for module in (blocks, assemble):
            monkeypatch.setattr(module, "block_of", self._block)
        self.lines = lines

    def _block(self, spec: KernelSpec, constants: Any, target: Any) -> Block | str:
        found = block_of(spec, constants, target, self.lines)
        if isinstance(found, str):
            self.refused.add(found)
        return found

    def run(self, model: nn.Module, *inputs: Tensor, **options: Any) -> tuple[Any, list[KernelSpec]]:
        """The compiled model, and its kernels in the order of their calls."""
        torch._dynamo.reset()
        fast: Any = torch.compile(model.eval(), backend="effc", options={"fallback": "error", **options})
        with torch.no_grad(), record() as recording:
            fast(*inputs)
        ((program, _),) = recording.programs
        return fast, called(program)


def called(program: Program) -> list[KernelSpec]:
    return [program.kernels[call.kernel] for call in program.calls]
