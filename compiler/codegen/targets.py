"""Targets as plain data: a CPU's by name, a GPU's by name or by its fields."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from effc.compiler.codegen.cpu.target import Target
from effc.compiler.codegen.gpu.target import GpuTarget

AnyTarget = Target | GpuTarget


def target_named(name: str) -> AnyTarget:
    """``"sm_90"`` and the like are GPUs, all else is a CPU; ValueError: there is no such target."""
    return GpuTarget.named(name) if name.startswith("sm_") else Target.named(name)


def target_of(plain: str | Sequence[Any]) -> AnyTarget:
    """That of a name, or of the fields of a `GpuTarget`, as ``dataclasses.astuple`` gives them."""
    return target_named(plain) if isinstance(plain, str) else GpuTarget(*plain)
