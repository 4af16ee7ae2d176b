"""The ``chain`` template: contractions of the same rows, one behind the other, in one kernel; what lies between stays in the caches."""

from __future__ import annotations

from effc.compiler.codegen.cpu.chain.kernel import ChainKernel
from effc.compiler.codegen.cpu.chain.plan import Plan
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.errors import LoweringError
from effc.compiler.ir.spec import KernelSpec


def emit(spec: KernelSpec, target: Target) -> str:
    """The kernel's module, of a spec whose stages are packed and scheduled (`choice.chained`)."""
    plan = Plan.of(spec, target)
    if isinstance(plan, str):
        raise LoweringError(f"this chain is not supported: {plan}")
    return ChainKernel(spec, plan, target).text()
