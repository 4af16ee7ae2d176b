"""Winograd's method for 3x3 convolutions of stride 1: a form of the ``contraction`` template."""

from __future__ import annotations

from effc.compiler.codegen.cpu.target import Target
from effc.compiler.codegen.cpu.winograd.form import find
from effc.compiler.codegen.cpu.winograd.kernel import WinogradKernel
from effc.compiler.codegen.cpu.winograd.plan import Plan
from effc.compiler.ir.errors import LoweringError
from effc.compiler.ir.spec import KernelSpec


def emit(spec: KernelSpec, target: Target) -> str:
    """The kernel's module; LoweringError where ``form.find`` says no."""
    form = find(spec, target)
    if isinstance(form, str):
        raise LoweringError(f"Winograd's method does not serve this contraction: {form}")
    return WinogradKernel(spec, Plan.of(form, spec.schedule, target), target).text()
