"""Products with a sparse constant factor: a form of the ``contraction`` template."""

from __future__ import annotations

from effc.compiler.codegen.cpu.sparse.blocks import BlocksKernel
from effc.compiler.codegen.cpu.sparse.choice import plan_of
from effc.compiler.codegen.cpu.sparse.columns import ColumnsKernel
from effc.compiler.codegen.cpu.sparse.dots import DotsKernel
from effc.compiler.codegen.cpu.sparse.form import find
from effc.compiler.codegen.cpu.sparse.group_plan import GroupPlan
from effc.compiler.codegen.cpu.sparse.groups import GroupsKernel
from effc.compiler.codegen.cpu.sparse.kernel import SparseKernel
from effc.compiler.codegen.cpu.sparse.rows import RowsKernel
from effc.compiler.codegen.cpu.sparse.window import WindowKernel
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.errors import LoweringError
from effc.compiler.ir.spec import KernelSpec

_KERNELS: dict[str, type[SparseKernel]] = {
    "rows": RowsKernel,
    "blocks": BlocksKernel,
    "columns": ColumnsKernel,
    "dots": DotsKernel,
    "window": WindowKernel,
}


def emit(spec: KernelSpec, target: Target) -> str:
    """The kernel's module; LoweringError where ``form.find`` says no."""
    form = find(spec, target)
    if isinstance(form, str):
        raise LoweringError(f"no sparse kernel serves this contraction: {form}")
    plan = plan_of(form, spec.schedule, target)
    kernel = (
        GroupsKernel(spec, plan, target) if isinstance(plan, GroupPlan) else _KERNELS[plan.method](spec, plan, target)
    )
    return kernel.text()
