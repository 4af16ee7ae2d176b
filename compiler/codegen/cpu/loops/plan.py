"""What the ``loops`` emitter decides before it writes code: the vector dimension, lanes, unrolling, passes, row buffers.

Schedule parameters (all optional): ``vector`` (a dimension of the spec, whose dimensions then stay as they are),
``lanes``, ``unroll``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from effc.compiler.codegen.canonical import merge, reorder, simplify
from effc.compiler.codegen.cpu.access import Pattern, pattern_of
from effc.compiler.codegen.cpu.body import dependencies
from effc.compiler.codegen.cpu.loops.costs import cycles, joins_vectors, unroll_for, work
from effc.compiler.codegen.cpu.loops.staging import Staging, stage
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.expr import Expr
from effc.compiler.ir.spec import ITEM_SIZE, KernelSpec

#: Size assumed of a symbolic dimension where a choice depends on it.
TYPICAL_SIZE = 256

#: Lanes of a transposed tile at most: 16 x 16 already fill half of the registers.
TILE = 16

#: Vectors that are computed as one where they are joined, and in a reduction, which needs registers for its sums.
JOINED = 8
JOINED_REDUCTION = 4

#: Vectors of columns side by side in a plain sum (or maximum) of many columns: each row may lie in a page of its own, of which
#: more is then read at a time (16384 x 1024: 1.2 ms, with 4 vectors 1.9). Its partial sums fill 24 of 32 registers.
COLUMNS = 8

#: Work of a body that is emitted once for each row of a tile.
TILE_WORK = 24


@dataclass(frozen=True)
class Plan:
    """``spec``: canonical, with the vector dimension last of its kind. ``vector``: its index, or None (a single point).

    ``unroll``: vectors of the vector dimension side by side where it is parallel; ``pass_unroll[p]``: where it is a
    reduction dimension, in pass ``p``. ``across``: the parallel dimension before the vector one with which it spans
    square tiles, because the loads ``transposed`` are contiguous along it. ``joined``: the unrolled vectors are computed as
    one of their lanes together.
    """

    spec: KernelSpec
    vector: int | None
    lanes: int
    unroll: int
    pass_unroll: tuple[int, ...]
    depends: tuple[frozenset[str], ...]
    staging: Staging
    across: int | None = None
    transposed: tuple[int, ...] = ()
    joined: bool = False

    @property
    def parallel(self) -> list[int]:
        return [i for i, d in enumerate(self.spec.dims) if d.kind == "parallel"]

    @property
    def reduction(self) -> list[int]:
        return [i for i, d in enumerate(self.spec.dims) if d.kind == "reduction"]

    @property
    def vector_is_parallel(self) -> bool:
        return self.vector is not None and self.spec.dims[self.vector].kind == "parallel"

    @property
    def vector_name(self) -> str | None:
        return None if self.vector is None else f"d{self.vector}"


def make_plan(original: KernelSpec, target: Target) -> Plan:
    fixed = original.schedule.get("vector")
    spec = original if fixed is not None else simplify(original)
    wide = _lanes(spec, target)
    vector = int(fixed) if fixed is not None else _choose_vector(spec, wide)
    if vector is None:
        return _point(spec)
    across = None if fixed is not None else _across(spec, vector, wide)
    spec, vector, across = _order(spec, vector, across)
    lanes = int(original.schedule.get("lanes", _fit(wide, spec.dims[vector].size)))
    if across is not None:
        lanes = min(lanes, TILE)
    depends = dependencies(spec)
    horizontal = spec.dims[vector].kind == "reduction"
    staging = stage(spec, depends, _row_elements(spec, vector, lanes), horizontal)
    fixed_unroll = original.schedule.get("unroll")
    size = spec.dims[vector].size.constant

    joined = fixed_unroll is None and joins_vectors(spec)

    together = JOINED_REDUCTION if any(d.kind == "reduction" for d in spec.dims) else JOINED

    def unroll(amount: int) -> int:
        wanted = together if joined else unroll_for(amount) if fixed_unroll is None else int(fixed_unroll)
        fits = wanted if size is None else max(1, min(wanted, size // lanes))
        return 1 << fits.bit_length() - 1 if joined else fits  # other lengths split badly into registers

    columns = fixed_unroll is None and target.vector_bytes == 64 and _many_columns(spec, vector, lanes)
    transposed = () if across is None else tuple(_transposed_loads(spec, vector, across))
    return Plan(
        spec,
        vector,
        lanes,
        COLUMNS if columns else unroll(max(staging.work, default=work(spec, range(len(spec.body))))),
        tuple(unroll(amount) for amount in staging.work),
        depends,
        staging,
        across,
        transposed,
        joined,
    )


def plan_lines(spec: KernelSpec, target: Target, lines: int) -> Plan | str:
    """The plan of a nest whose first ``lines`` dimensions stay as they are, or the reason why it has none."""
    spec = merge(spec, lines)
    vector = _choose_vector(spec, _lanes(spec, target), lines)
    if vector is None:
        return "a line of a single element"
    if _across(spec, vector, _lanes(spec, target)) is not None:
        return "a stage that transposes what it reads"
    return make_plan(spec.with_schedule(vector=vector), target)


def vector_cost(plan: Plan) -> float:
    """Estimated cycles of one vector of points; memory from the second-level cache."""
    return sum(instruction_cost(plan, i) for i in range(len(plan.spec.body)))


def instruction_cost(plan: Plan, i: int) -> float:
    """Of instruction ``i``: for one vector of points, or one point where it does not vary with these."""
    instr = plan.spec.body[i]
    lanes = plan.lanes if plan.vector_name in plan.depends[i] else 1
    if instr.op not in ("load", "store"):
        return cycles(instr.op, lanes)
    kind = _pattern(plan.spec, i, plan.vector_name, plan.depends).kind
    return 2.0 if kind in ("uniform", "contiguous") else 6.0 if i in plan.transposed else 2.0 * lanes


def _point(spec: KernelSpec) -> Plan:
    """The plan of a nest without dimensions."""
    depends = dependencies(spec)
    return Plan(spec, None, 1, 1, (), depends, stage(spec, depends, None))


def _pattern(spec: KernelSpec, i: int, vector: str | None, depends: tuple[frozenset[str], ...]) -> Pattern:
    varies: Callable[[str], bool] = lambda value: vector in depends[int(value[1:])]  # noqa: E731
    return pattern_of(spec.body[i]["address"], vector, varies)


# -- the choices ------------------------------------------------------------------------------------------------------
def _lanes(spec: KernelSpec, target: Target) -> int:
    """Lanes of a full vector: by the widest of the usual compute types that the body holds."""
    held = {"f32" if i.dtype in ("bf16", "f16") and _computes(spec) else i.dtype for i in spec.body if i.op != "index"}
    held |= {o.dtype for o in spec.operands if not _computes(spec)}
    sizes = {ITEM_SIZE[d] for d in held if d}
    if 4 in sizes:
        return target.lanes(4)
    return target.lanes(max(sizes, default=4))


def _computes(spec: KernelSpec) -> bool:
    return any(i.op not in ("load", "store", "constant", "index", "check") for i in spec.body)


def _fit(lanes: int, size: Expr) -> int:
    """A vector no longer than a short constant dimension needs."""
    if size.constant is None:
        return lanes
    while lanes > 2 and lanes // 2 >= size.constant:
        lanes //= 2
    return lanes


def _choose_vector(spec: KernelSpec, lanes: int, lines: int = 0) -> int | None:
    """The dimension, none of the first ``lines``, whose vectors touch memory most cheaply; among equals a parallel one, then the last."""
    depends = dependencies(spec)
    best: tuple[float, int, int] | None = None
    for v, dim in list(enumerate(spec.dims))[lines:]:
        name = f"d{v}"
        cost = 0.0
        for i, instr in enumerate(spec.body):
            if instr.op not in ("load", "store"):
                continue
            kind = _pattern(spec, i, name, depends).kind
            cost += {"uniform": 0.25, "contiguous": 1.0}.get(kind, 8.0 if instr.op == "store" else 6.0)
        size = dim.size.constant or TYPICAL_SIZE
        cost = (cost + 0.1) / min(1.0, size / lanes)
        if dim.kind == "reduction":  # horizontal sums at the end of each row
            cost += 8.0 * lanes / max(size, lanes) / lanes * sum(i.op == "reduce" for i in spec.body)
        key = (cost, int(dim.kind == "reduction"), -v)
        if best is None or key < best:
            best = key
    return None if best is None else -best[2]


def _across(spec: KernelSpec, vector: int, lanes: int) -> int | None:
    """The parallel dimension along which loads that the vectors would gather are contiguous; None: no tiles."""
    if any(d.kind == "reduction" for d in spec.dims) or not _fills(spec.dims[vector].size, lanes):
        return None
    counts = {
        u: sum(1 for _ in _transposed_loads(spec, vector, u))
        for u, dim in enumerate(spec.dims)
        if u != vector and _fills(dim.size, lanes)
    }
    best = max(counts, key=lambda u: counts[u], default=None)
    return best if best is not None and counts[best] and work(spec, range(len(spec.body))) <= TILE_WORK else None


def _fills(size: Expr, lanes: int) -> bool:
    return size.constant is None or size.constant >= min(lanes, TILE)


def _transposed_loads(spec: KernelSpec, vector: int, across: int) -> Iterator[int]:
    for i, instr in enumerate(spec.body):
        if instr.op != "load" or instr.args or any(v[0] == "v" for v in instr["address"].variables()):
            continue
        step, along = instr["address"].coefficient(f"d{vector}"), instr["address"].coefficient(f"d{across}")
        if step is not None and step.constant not in (0, 1) and along is not None and along.constant == 1:
            yield i


def _order(spec: KernelSpec, vector: int, across: int | None) -> tuple[KernelSpec, int, int | None]:
    """The spec with ``vector`` last of its kind and ``across`` just before it, and where they are now."""
    special = [i for i in (across, vector) if i is not None]
    parallel = [i for i, d in enumerate(spec.dims) if d.kind == "parallel" and i not in special]
    reduction = [i for i, d in enumerate(spec.dims) if d.kind == "reduction" and i not in special]
    (parallel if spec.dims[vector].kind == "parallel" else reduction).extend(special)
    order = [*parallel, *reduction]
    return reorder(spec, order), order.index(vector), None if across is None else order.index(across)


def _many_columns(spec: KernelSpec, vector: int, lanes: int) -> bool:
    """Whether the kernel is one reduction of columns, with little else to do, and threads have enough of them."""
    size = spec.dims[vector].size.constant
    if spec.dims[vector].kind == "reduction" or size is None or size < 8 * COLUMNS * lanes:
        return False
    return sum(i.op == "reduce" for i in spec.body) == 1 and work(spec, range(len(spec.body))) <= 4


def _row_elements(spec: KernelSpec, vector: int, lanes: int) -> int | None:
    """Elements of a buffer that holds a value at all points of the reduction dimensions, in whole vectors."""
    if spec.dims[vector].kind == "parallel":
        return None
    elements = 1
    for i, dim in enumerate(spec.dims):
        if dim.kind == "reduction":
            if dim.size.constant is None:
                return None
            elements *= -(-dim.size.constant // lanes) * lanes if i == vector else dim.size.constant
    return elements
