"""A GPU target as the cost model describes it."""

from __future__ import annotations

from effc.compiler.codegen.gpu.target import GpuTarget
from effc.costmodel.gpu.machine import Gpu


def described(target: GpuTarget, model: str = "") -> Gpu:
    """``model``: of the device that is timed, "" where code is compiled only."""
    return Gpu(
        target.capability,
        target.processors,
        target.shared_bytes,
        target.tf32,
        target.tf32_convolutions,
        target.descriptors,
        model,
    )
