"""Whether a product leaves out the zeros of its constant factor: where that is counted to be faster, or where a plan asks for it."""

from __future__ import annotations

from dataclasses import replace
from math import prod

from effc.compiler.codegen.cpu.contraction.cast import cast
from effc.compiler.codegen.cpu.contraction.schedule import estimate as dense_step
from effc.compiler.codegen.cpu.contraction.schedule import schedule as dense_schedule
from effc.compiler.codegen.cpu.sparse.form import find
from effc.compiler.codegen.cpu.sparse.plan import Plan, estimate, plans
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.codegen.cpu.winograd.choice import chosen as winograd
from effc.compiler.codegen.cpu.winograd.plan import Plan as WinogradPlan
from effc.compiler.codegen.cpu.winograd.plan import estimate as winograd_cycles
from effc.compiler.ir.expr import const
from effc.compiler.ir.spec import Dim, KernelSpec, Schedule

#: Schedules of sparse kernels among a kernel's candidates.
OFFERED = 8
#: Share of the dense kernel's cycles that a sparse one may have: counts are some 15 % off.
MARGIN = 0.85


def chosen(packed: KernelSpec, target: Target, wanted: Schedule | None) -> Plan | None:
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
    return found[0] if estimate(found[0]) < MARGIN * dense_cycles(packed, form.sum, target) else None


def offered(packed: KernelSpec, target: Target) -> list[Schedule]:
    """The cheapest schedules, none where no sparse kernel serves."""
    form = find(packed, target)
    return [] if isinstance(form, str) else [p.schedule for p in plans(form, target)[:OFFERED]]


def dense_cycles(packed: KernelSpec, products: int, target: Target) -> float:
    """Cycles on one thread of the kernel that would run if no zeros were known: Winograd's method where it is chosen. ``products``: of
    each sum.
    """
    method = winograd(packed, target, None)
    if method is not None:
        return winograd_cycles(WinogradPlan.of(*method, target))
    nest, lanes = cast(packed, target), target.lanes(4)
    assert not isinstance(nest, str), "there is a sparse form"
    best = dense_schedule(nest, target)
    outer = prod(nest.size(i).constant or 1 for i in nest.outer)
    rows = nest.size(nest.row).constant
    if nest.row is not None and rows is not None:  # a panel stays in L2 while the tiles of all lines pass
        dims = list(nest.spec.dims)
        dims[nest.row] = Dim(const(rows * outer))
        nest, outer = replace(nest, spec=replace(nest.spec, dims=tuple(dims))), 1
    return outer * products * dense_step(nest, target, best["mr"], best["nr"] // lanes)
