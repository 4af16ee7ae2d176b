"""How threads share the work of a ``loops`` kernel."""

from __future__ import annotations

from dataclasses import dataclass

from effc.compiler.codegen.cpu.loops.partials import partial_bytes
from effc.compiler.codegen.cpu.loops.plan import TYPICAL_SIZE, Plan, vector_cost
from effc.compiler.ir.expr import Expr, const, product

#: Units into which the outer loops are cut for threads, where there are that many: shares then differ by a few percent.
UNITS = 32

#: Vectors of the vector dimension that make one unit, where it is the vector dimension that threads share.
CHUNK_VECTORS = 64

#: Elements of a unit where threads share the outermost reduction dimension, and elements from which on they do.
SPLIT_ELEMENTS = 4096
SPLIT_FROM = 65_536


@dataclass(frozen=True)
class Cut:
    """How threads share the work. ``leading``: outer dims whose points are units; the others loop inside a unit.

    ``chunk``: elements of the vector dimension in a unit, or None where a unit spans the whole of it. ``split``: iterations
    of the outermost reduction dimension in a unit where threads share that one instead, leaving ``partial_bytes`` each.
    """

    leading: tuple[int, ...]
    inner: tuple[int, ...]
    chunk: int | None
    units: Expr
    cycles: Expr
    split: int = 0
    partial_bytes: int = 0


def cut_work(plan: Plan) -> Cut:
    sizes = [d.size for d in plan.spec.dims]
    outer = [i for i in plan.parallel if i not in (plan.vector, plan.across)]
    split = _split(plan)
    if split is not None:
        return split
    leading: list[int] = []
    count = 1
    if plan.across is not None and plan.vector is not None:
        units = product(sizes[i] for i in outer) * ((sizes[plan.across] + (plan.lanes - 1)) // const(plan.lanes))
        points = sizes[plan.vector] * plan.lanes
        return Cut(tuple(outer), (), None, units, _cycles(plan, points))
    for i in outer:
        if count >= UNITS:
            break
        leading.append(i)
        count *= _typical(sizes[i])
    inner = [i for i in outer if i not in leading]
    units = product(sizes[i] for i in leading)
    points = product(sizes[i] for i in (*inner, *plan.reduction))
    chunk = None
    if plan.vector_is_parallel and plan.vector is not None:
        width = sizes[plan.vector]
        if count < UNITS:
            step = plan.lanes * plan.unroll
            chunk = step if plan.reduction else max(1, CHUNK_VECTORS // plan.unroll) * step
            units = units * ((width + (chunk - 1)) // const(chunk))
            points = points * chunk
        else:
            points = points * width
    return Cut(tuple(leading), tuple(inner), chunk, units, _cycles(plan, points))


def cut_lines(plan: Plan, lines: int) -> Cut:
    """A unit is a point of the first ``lines`` dimensions."""
    sizes = [d.size for d in plan.spec.dims]
    inner = tuple(i for i in plan.parallel[lines:] if i != plan.vector)
    points = product(sizes[lines:])
    return Cut(tuple(range(lines)), inner, None, product(sizes[:lines]), _cycles(plan, points))


def _typical(size: Expr) -> int:
    return TYPICAL_SIZE if size.constant is None else size.constant


def _cycles(plan: Plan, points: Expr) -> Expr:
    lanes = plan.lanes if plan.vector is not None else 1
    cost = max(1, round(16 * vector_cost(plan) / lanes))  # sixteenths of a cycle a point
    return (points * cost + 15) // const(16)


def _split(plan: Plan) -> Cut | None:
    """Threads over the reduction, where the points alone are too few units and a single pass does it all."""
    if not plan.reduction or plan.staging.count != 1:
        return None
    inner_root = any(plan.staging.inner[i] and n.op in ("store", "check") for i, n in enumerate(plan.spec.body))
    size = partial_bytes(plan)
    if inner_root or size is None:
        return None
    sizes = [d.size for d in plan.spec.dims]
    points = product(sizes[i] for i in plan.parallel)
    wide = plan.lanes * plan.unroll if plan.vector_is_parallel else 1
    elements = _product_typical(plan, plan.parallel) * _product_typical(plan, plan.reduction)
    long = elements >= SPLIT_FROM or any(sizes[i].constant is None for i in plan.reduction)
    if not long or _product_typical(plan, plan.parallel) >= UNITS // 2 * wide:
        return None
    first, rest = plan.reduction[0], plan.reduction[1:]
    grain = max(1, SPLIT_ELEMENTS // (_product_typical(plan, plan.parallel) * _product_typical(plan, rest)))
    work = points * product(sizes[i] for i in rest) * grain
    units = (sizes[first] + (grain - 1)) // const(grain)
    return Cut((), tuple(i for i in plan.parallel if i != plan.vector), None, units, _cycles(plan, work), grain, size)


def _product_typical(plan: Plan, dims: list[int]) -> int:
    total = 1
    for i in dims:
        total *= _typical(plan.spec.dims[i].size)
    return total
