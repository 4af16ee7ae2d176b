"""The ``contraction`` template: matrix products, batched products and direct convolutions."""

from __future__ import annotations

from effc.compiler.codegen.cpu.contraction.amx import AmxKernel
from effc.compiler.codegen.cpu.contraction.amx_turned import AmxTurnedKernel
from effc.compiler.codegen.cpu.contraction.cast import cast
from effc.compiler.codegen.cpu.contraction.codes import CodesKernel
from effc.compiler.codegen.cpu.contraction.dots import DotsKernel
from effc.compiler.codegen.cpu.contraction.form import form
from effc.compiler.codegen.cpu.contraction.kernel import Kernel
from effc.compiler.codegen.cpu.contraction.schedule import schedule as default_schedule
from effc.compiler.codegen.cpu.contraction.shape import Shape
from effc.compiler.codegen.cpu.contraction.turned import TurnedKernel
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.errors import LoweringError
from effc.compiler.ir.spec import KernelSpec

_KERNELS: dict[str, type[Kernel]] = {
    "tiles": Kernel,
    "dots": DotsKernel,
    "turned": TurnedKernel,
    "codes": CodesKernel,
    "amx": AmxKernel,
    "amx_turned": AmxTurnedKernel,
}


def emit(spec: KernelSpec, target: Target) -> str:
    """The kernel's module; LoweringError where ``supports`` says no."""
    nest = cast(spec, target)
    if isinstance(nest, str):
        raise LoweringError(f"this contraction is not supported: {nest}")
    schedule = spec.schedule if spec.schedule.parameters else default_schedule(nest, target)
    kernel = _KERNELS[form(nest, target)]
    return kernel(nest, Shape.of(spec, nest, schedule, target), target).text()
