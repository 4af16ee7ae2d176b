"""KernelSpec → MLIR text: one emitter a template."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.errors import LoweringError
from effc.compiler.ir.spec import KernelSpec

Emitter = Callable[[KernelSpec, Target], str]

#: Template, or the method that a contraction's schedule names → module that holds its ``emit(spec, target) -> str``; imported on first use.
_EMITTERS = {
    "loops": "effc.compiler.codegen.cpu.loops",
    "contraction": "effc.compiler.codegen.cpu.contraction",
    "block": "effc.compiler.codegen.cpu.block",
    "winograd": "effc.compiler.codegen.cpu.winograd",
    "sparse": "effc.compiler.codegen.cpu.sparse",
    "skip": "effc.compiler.codegen.cpu.skipping",
    "attention": "effc.compiler.codegen.cpu.attention",
    "scan": "effc.compiler.codegen.cpu.scan",
    "scatter": "effc.compiler.codegen.cpu.scatter",
}


def emit(spec: KernelSpec, target: Target) -> str:
    """A module that defines ``k_<digest>(!llvm.ptr)`` by the calling convention in docs/architecture.md."""
    if spec.template not in _EMITTERS:
        raise LoweringError(f"no emitter for template {spec.template!r}: known are {', '.join(_EMITTERS)}")
    name = next((method for method in ("winograd", "sparse", "skip") if spec.schedule.get(method)), spec.template)
    emitter: Emitter = import_module(_EMITTERS[name]).emit
    return emitter(spec, target)


def kernel_name(spec: KernelSpec) -> str:
    """The symbol under which the kernel's object defines it."""
    return f"k_{spec.digest()}"
