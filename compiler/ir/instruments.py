"""Instruments of a ``PassManager``: time by pass, the IR after every pass, a reproducer of a failure."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from effc.compiler.ir.pass_text import format_pipeline
from effc.compiler.ir.passes import Instrument, Pass

if TYPE_CHECKING:
    from torch_mlir import ir


class Timing(Instrument):
    """Seconds by pass name, verification included, in the order of first appearance."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._started = 0.0

    def before(self, index: int, step: Pass, module: ir.Module) -> None:
        self._started = time.perf_counter()

    def after(self, index: int, step: Pass, module: ir.Module) -> None:
        self.seconds[step.name] = self.seconds.get(step.name, 0.0) + time.perf_counter() - self._started


class Dump(Instrument):
    """Writes ``00-input.mlir``, ``01-NAME.mlir``, … into ``directory``, source locations included."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory

    def before(self, index: int, step: Pass, module: ir.Module) -> None:
        if index == 0:
            self._write("00-input.mlir", module)

    def after(self, index: int, step: Pass, module: ir.Module) -> None:
        self._write(f"{index + 1:02}-{step.name}.mlir", module)

    def _write(self, name: str, module: ir.Module) -> None:
        (self.directory / name).write_text(module_text(module))


class Reproducer(Instrument):
    """Keeps the IR before each pass; on a failure writes ``path``, which ``effc-opt`` runs to the same failure."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._text = ""

    def before(self, index: int, step: Pass, module: ir.Module) -> None:
        self._text = module_text(module)

    def failed(self, index: int, steps: Sequence[Pass], error: Exception) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(reproducer(self._text, f"-p '{format_pipeline(steps[index:])}'", str(error)))


def module_text(module: ir.Module) -> str:
    """The module as text with its source locations, readable back by ``effc-opt``."""
    return str(module.operation.get_asm(enable_debug_info=True)) + "\n"


def reproducer(text: str, arguments: str, reason: str) -> str:
    """A file on which ``effc-opt FILE arguments`` fails with ``reason``; its head says so."""
    why = "".join(f"// {line}\n" for line in reason.splitlines())
    return f"// RUN: effc-opt %s {arguments}\n{why}{text}"
