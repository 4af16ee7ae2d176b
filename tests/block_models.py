"""Compiling in this process, so that a test decides which kernels become blocks, and of how many lines tiles are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from in_process import compiled_here
from torch import Tensor, nn

from effc.compiler.codegen.cpu.block.choice import Block, block_of
from effc.compiler.ir.program import Program
from effc.compiler.ir.spec import KernelSpec
from effc.compiler.pipeline import assemble, blocks


class Forced:
    """Makes a block of as many kernels as can be one, with tiles of ``lines``. ``refused``: why others are none."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, lines: int | None = None) -> None:
        self.refused: set[str] = set()
        monkeypatch.setattr(blocks, "saved", lambda found: float(len(found.spec.stages)))
        for module in (blocks, assemble):
            monkeypatch.setattr(module, "block_of", self._block)
        self.lines = lines

    def _block(self, spec: KernelSpec, constants: Any, target: Any) -> Block | str:
        found = block_of(spec, constants, target, self.lines)
        if isinstance(found, str):
            self.refused.add(found)
        return found

    def run(self, model: nn.Module, *inputs: Tensor) -> tuple[Any, list[KernelSpec]]:
        """The compiled model, and its kernels in the order of their calls."""
        torch._dynamo.reset()
        found: list[Program] = []
        fast = compiled_here(model.eval(), lambda built: found.append(built.artifact.program))
        with torch.no_grad():
            fast(*inputs)
        (program,) = found
        return fast, called(program)


def called(program: Program) -> list[KernelSpec]:
    return [program.kernels[call.kernel] for call in program.calls]
