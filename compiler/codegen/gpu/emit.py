"""KernelSpec → TTIR: one emitter a template."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from effc.compiler.codegen.gpu.launch import Emitted
from effc.compiler.codegen.gpu.target import GpuTarget
from effc.compiler.ir.errors import LoweringError
from effc.compiler.ir.spec import KernelSpec

#: Template → module that holds its ``emit(spec, target, name, *, aligned)``; imported on first use.
_EMITTERS = {
    "loops": "effc.compiler.codegen.gpu.loops",
    "contraction": "effc.compiler.codegen.gpu.contraction.kernel",
    "attention": "effc.compiler.codegen.gpu.attention",
    "block": "effc.compiler.codegen.gpu.pair.kernel",
}


def emit(spec: KernelSpec, target: GpuTarget, *, aligned: bool = True) -> Emitted:
    """The launches of ``spec``. ``aligned``: for operands at multiples of 16 bytes; else for any.

    LoweringError: the code generator has no kernel for it, and says why; the region goes to ATen.
    """
    if spec.template not in _EMITTERS:
        raise LoweringError(f"no GPU kernel for template {spec.template!r}: there are {', '.join(_EMITTERS)}")
    emitter: Callable[..., Emitted] = import_module(_EMITTERS[spec.template]).emit
    return emitter(spec, target, f"k_{spec.digest()}", aligned=aligned)
