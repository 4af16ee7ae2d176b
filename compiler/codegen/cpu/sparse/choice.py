"""Whether a product leaves out the zeros of its constant factor: where that is counted to be faster, or where a plan asks for it."""

from __future__ import annotations

from dataclasses import replace
from math import prod

from effc.compiler.codegen.cpu.contraction.cast import cast
from effc.compiler.codegen.cpu.contraction.schedule import FAR_BYTES
from effc.compiler.codegen.cpu.contraction.schedule import estimate as dense_step
from effc.compiler.codegen.cpu.contraction.schedule import schedule as dense_schedule
from effc.compiler.codegen.cpu.sparse.count import estimate
from effc.compiler.codegen.cpu.sparse.form import Form, find
from effc.compiler.codegen.cpu.sparse.group_plan import GroupPlan, group_plans
from effc.compiler.codegen.cpu.sparse.offers import plans as block_plans
from effc.compiler.codegen.cpu.sparse.plan import Plan
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.codegen.cpu.winograd.choice import chosen as winograd
from effc.compiler.codegen.cpu.winograd.plan import Plan as WinogradPlan
from effc.compiler.codegen.cpu.winograd.plan import estimate as winograd_cycles
from effc.compiler.ir.expr import const
from effc.compiler.ir.spec import ITEM_SIZE, Dim, KernelSpec, Schedule

AnyPlan = Plan | GroupPlan

#: Schedules of sparse kernels among a kernel's candidates.
OFFERED = 8
#: Share of the dense kernel's cycles that a sparse one may have: counts are some 15 % off. Where lanes are rows they are right on Zen 4,
#: whose multiply-adds of 512 bits take two cycles; on Emerald Rapids, where they take one, such kernels took 1.4 times what is counted.
MARGIN, MARGIN_OF_ROWS = 0.85, 0.65


def chosen(packed: KernelSpec, target: Target, wanted: Schedule | None) -> AnyPlan | None:
    """The plan to use, None for the dense kernel. ``packed``: the spec with its constant factor packed."""
    if wanted is not None and not wanted.get("sparse"):
        return None
    form = find(packed, target)
    if isinstance(form, str):
        return None
    found = plans(form, target)
    asked = next((p for p in found if p.schedule == wanted), None)
    if asked is not None or not found:
        return asked
    return found[0] if _cycles(found[0]) < _margin(found[0], target) * dense_cycles(packed, form, target) else None


def offered(packed: KernelSpec, target: Target) -> list[Schedule]:
    """The cheapest schedules, none where no sparse kernel serves."""
    form = find(packed, target)
    return [] if isinstance(form, str) else [p.schedule for p in plans(form, target)[:OFFERED]]


def plans(form: Form, target: Target) -> list[AnyPlan]:
    """All that are worth trying, the cheapest first."""
    blocks = block_plans(form, target) if form.dtype == "f32" else []
    return sorted([*group_plans(form, target), *blocks], key=_cycles)


def plan_of(form: Form, schedule: Schedule, target: Target) -> AnyPlan:
    """The plan whose schedule this is."""
    kind = GroupPlan if schedule["sparse"] == "groups" else Plan
    return kind.of(form, schedule, target)


def _margin(plan: AnyPlan, target: Target) -> float:
    by_rows = plan.method in ("rows", "blocks") and not target.halves_vectors
    return MARGIN_OF_ROWS if by_rows else MARGIN


def _cycles(plan: AnyPlan) -> float:
    return plan.cycles if isinstance(plan, GroupPlan) else estimate(plan)


def dense_cycles(packed: KernelSpec, form: Form, target: Target) -> float:
    """Cycles on one thread of the kernel that would run if no zeros were known: Winograd's method where it is chosen; in bfloat16 those
    that its bytes take at least.
    """
    if form.dtype == "bf16":
        outer = prod(form.nest.size(i).constant or 1 for i in form.nest.outer)
        return outer * form.sum * form.columns * ITEM_SIZE["bf16"] / FAR_BYTES
    method = winograd(packed, target, None)
    if method is not None:
        return winograd_cycles(WinogradPlan.of(*method, target))
    nest, lanes = cast(packed, target), target.lanes(4)
    assert not isinstance(nest, str), "there is a sparse form"
    outer = prod(nest.size(i).constant or 1 for i in nest.outer)
    best = dense_schedule(nest, target)
    rows = nest.size(nest.row).constant
    if nest.row is not None and rows is not None:  # a panel stays in L2 while the tiles of all lines pass
        dims = list(nest.spec.dims)
        dims[nest.row] = Dim(const(rows * outer))
        nest, outer = replace(nest, spec=replace(nest.spec, dims=tuple(dims))), 1
    return outer * form.sum * dense_step(nest, target, best["mr"], best["nr"] // lanes)
