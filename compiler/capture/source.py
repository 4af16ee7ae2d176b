"""Where in the user's model a graph node comes from, for errors and the report."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.fx import Node

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in [^\n]*(?:\n\s+(?!File ")(?P<code>[^\n]*))?')


@dataclass(frozen=True)
class Source:
    """A line of the user's program; ``str()`` is ``model.py:12``.

    Where torch keeps no line (its own modules, called by nobody's code), ``module`` names the module: ``layers.0 (Linear)``.
    """

    file: str = ""
    line: int = 0
    code: str = ""
    module: str = ""

    def __str__(self) -> str:
        return f"{os.path.basename(self.file)}:{self.line}" if self.file else self._without_line()

    def describe(self) -> str:
        """The place with its full path and the code there, for errors."""
        if not self.file:
            return self._without_line()
        return f"{self.file}:{self.line}" + (f" ({self.code})" if self.code else "")

    def location(self) -> tuple[str, int]:
        """For graph IR: the file's name, or the module's, without what MLIR's text would quote, and the line, or 0."""
        name = os.path.basename(self.file) if self.file else self._without_line()
        return name.replace("\\", "/").replace('"', "'"), self.line

    def _without_line(self) -> str:
        return f"module {self.module}" if self.module else "<unknown>"


def source_of(node: Node) -> Source:
    """The innermost frame of ``node``'s stack trace that is not torch's own code (else the innermost of all)."""
    return _innermost(node.meta.get("stack_trace") or "") or Source(module=_module(node))


@lru_cache(maxsize=8192)
def _innermost(stack_trace: str) -> Source | None:
    frames = [Source(m["file"], int(m["line"]), (m["code"] or "").strip()) for m in _FRAME.finditer(stack_trace)]
    mine = [f for f in frames if not f.file.startswith(_library())]
    return (mine or frames)[-1] if frames else None


@cache
def _library() -> str:
    """The folder of torch's own code; found without importing it."""
    spec = find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    return os.path.dirname(spec.origin) + os.sep


def _module(node: Node) -> str:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if not stack:
        return ""
    path, kind = stack[-1]
    name = re.sub(r"^[LG]\['\w+'\]\.?", "", path)
    return f"{name} ({getattr(kind, '__name__', kind)})".strip()


def op_name(node: Node) -> str:
    """The op as a user knows it: ``aten.add.Tensor``."""
    target = node.target
    if getattr(target, "__name__", "") == "with_effects" and len(node.args) > 1:
        target = node.args[1]  # type: ignore[assignment]  # the op whose order among others is kept
    return str(target) if hasattr(target, "_schema") else str(getattr(target, "__name__", target))
