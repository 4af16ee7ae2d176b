"""Whether a convolution is computed by Winograd's method: where it is counted to be faster, or where a plan asks for it."""

from __future__ import annotations

from effc.compiler.codegen.cpu.target import Target
from effc.compiler.codegen.cpu.winograd.form import Form, find
from effc.compiler.codegen.cpu.winograd.plan import Plan, direct_cycles, estimate, schedules
from effc.compiler.ir.spec import KernelSpec, Schedule

#: Schedules of this method among a kernel's candidates.
OFFERED = 4


def chosen(packed: KernelSpec, target: Target, wanted: Schedule | None) -> tuple[Form, Schedule] | None:
    """The form and schedule to use, None for the direct method. ``packed``: the spec with its constant factor packed."""
    if wanted is not None and not wanted.get("winograd"):
        return None
    form = find(packed, target)
    if isinstance(form, str):
        return None
    found = schedules(form, target)
    if wanted is not None and wanted in found:
        return form, wanted
    plan = Plan.of(form, found[0], target)
    return (form, found[0]) if estimate(plan) < direct_cycles(plan) else None


def offered(packed: KernelSpec, target: Target) -> list[Schedule]:
    """The cheapest schedules, none where the method does not serve."""
    form = find(packed, target)
    return [] if isinstance(form, str) else schedules(form, target)[:OFFERED]
