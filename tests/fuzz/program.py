"""A program: inputs, statements, results; and its source text."""

from __future__ import annotations

import ast
import linecache
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

Function = Callable[..., Any]


@dataclass(frozen=True)
class Input:
    """``shape`` is Python text, ``(3, n)``: ``n`` and ``m`` are sizes that grow with the step of a dynamic run."""

    name: str
    dtype: torch.dtype
    shape: str
    layout: str = "contiguous"
    special: bool = False


@dataclass(frozen=True)
class Statement:
    """``target = text``, or just ``text`` for an update in place (``target`` is then empty)."""

    text: str
    target: str = ""

    def __str__(self) -> str:
        return f"{self.target} = {self.text}" if self.target else self.text

    def names(self) -> set[str]:
        """Variables that it reads or writes (other than ``target``)."""
        return {node.id for node in ast.walk(ast.parse(self.text)) if isinstance(node, ast.Name)} - {"torch", "F"}


@dataclass(frozen=True)
class Program:
    seed: int
    inputs: tuple[Input, ...]
    statements: tuple[Statement, ...]
    results: tuple[str, ...]

    def source(self) -> str:
        """A module with ``inputs(seed, step)`` and ``graph(*inputs)``."""
        lines = ["import torch", "import torch.nn.functional as F", "from fuzz.inputs import tensor", "", ""]
        lines += ["def inputs(seed, step):", "    n, m = 5 + 2 * step, 8 + 3 * step", "    return ("]
        for i, x in enumerate(self.inputs):
            rest = f', "{x.layout}"' if x.layout != "contiguous" or x.special else ""
            rest += ", special=True" if x.special else ""
            lines.append(f"        tensor(seed * 100 + {i}, {x.dtype}, {x.shape}{rest}),  # {x.name}")
        lines += ["    )", "", "", f"def graph({', '.join(x.name for x in self.inputs)}):"]
        lines += [f"    {s}" for s in self.statements]
        lines.append(f"    return ({', '.join(self.results)}{',' * (len(self.results) == 1)})")
        return "\n".join(lines) + "\n"


def load(source: str) -> tuple[Function, Function]:
    """``graph`` and ``inputs`` of a source text; tracebacks show its lines."""
    name = f"<fuzz-{abs(hash(source))}>"
    linecache.cache[name] = (len(source), None, source.splitlines(True), name)
    scope: dict[str, Any] = {}
    exec(compile(source, name, "exec"), scope)
    return scope["graph"], scope["inputs"]
