"""The ``block`` template: kernels one behind the other as one, tile by tile of lines; what lies between stays in the caches."""

from __future__ import annotations

from effc.compiler.codegen.cpu.block.cost import stage_cycles
from effc.compiler.codegen.cpu.block.kernel import BlockKernel
from effc.compiler.codegen.cpu.block.plan import Plan
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.errors import LoweringError
from effc.compiler.ir.spec import KernelSpec


def emit(spec: KernelSpec, target: Target) -> str:
    """The kernel's module, of a spec whose stages are packed and scheduled (`choice.block_of`)."""
    plan = Plan.of(spec, target)
    if isinstance(plan, str):
        raise LoweringError(f"this block is not supported: {plan}")
    cycles = sum(stage_cycles(stage, target) for stage in plan.stages) / plan.units.count
    return BlockKernel(spec, plan, target, max(round(cycles), 1)).text()
