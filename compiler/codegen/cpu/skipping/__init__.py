"""Products of one row that leave out the weights which zeros make needless: a form of the ``contraction`` template."""

from __future__ import annotations

from effc.compiler.codegen.cpu.skipping.form import find
from effc.compiler.codegen.cpu.skipping.inputs import InputsKernel
from effc.compiler.codegen.cpu.skipping.kernel import SkippingKernel
from effc.compiler.codegen.cpu.skipping.outputs import OutputsKernel
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.errors import LoweringError
from effc.compiler.ir.spec import KernelSpec

_KERNELS: dict[str, type[SkippingKernel]] = {"inputs": InputsKernel, "outputs": OutputsKernel}


def emit(spec: KernelSpec, target: Target) -> str:
    """The kernel's module; LoweringError where ``form.find`` says no."""
    form = find(spec, target)
    if isinstance(form, str):
        raise LoweringError(f"no kernel leaves out weights of this contraction: {form}")
    return _KERNELS[form.method](spec, form, target).text()
