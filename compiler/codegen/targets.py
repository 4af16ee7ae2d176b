"""Targets by name: a CPU's or a GPU's."""

from __future__ import annotations

from effc.compiler.codegen.cpu.target import Target
from effc.compiler.codegen.gpu.target import GpuTarget

AnyTarget = Target | GpuTarget


def target_named(name: str) -> AnyTarget:
    """``"sm_90"`` and the like are GPUs, all else is a CPU; ValueError: there is no such target."""
    return GpuTarget.named(name) if name.startswith("sm_") else Target.named(name)
