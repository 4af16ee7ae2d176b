"""What the ``loops`` emitter decides before it writes code: the vector dimension, lanes, unrolling, passes, row buffers.

Schedule parameters (all optional): ``vector`` (a dimension of the spec), ``lanes``, ``unroll``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from effc.compiler.codegen.cpu.access import pattern_of
from effc.compiler.codegen.cpu.body import dependencies
from effc.compiler.codegen.cpu.loops.canonical import reorder, simplify
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.expr import Expr
from effc.compiler.ir.spec import ITEM_SIZE, Instr, KernelSpec

#: Size assumed of a symbolic dimension where a choice depends on it.
TYPICAL_SIZE = 256

#: Stack that row buffers may take; half of what a kernel may use, so that LLVM has room to spill.
BUFFER_BYTES = 32 * 1024

#: Lanes of a transposed tile at most: 16 x 16 already fill half of the registers.
TILE = 16

#: Instructions of a body that is emitted once for each row of a tile.
TILE_WORK = 24

_HEAVY_ARITH = frozenset(f"arith.{op}" for op in "divsi divui remsi remui floordivsi ceildivsi remf".split())
_CHEAP_MATH = frozenset(f"math.{op}" for op in "absf absi copysign fma floor ceil trunc roundeven sqrt rsqrt".split())


@dataclass(frozen=True)
class Plan:
    """``spec``: canonical, with the vector dimension last of its kind. ``vector``: its index, or None (a single point).

    ``passes[i]``: for an instruction that varies with the reduction dimensions, a ``reduce``, or an inner store, the pass over the
    reduction dimensions in which it is first possible (a store: the last). ``ready[i]``: the first pass that can use it. ``buffered``: values kept from that pass in a row buffer.
    ``across``: the parallel dimension before the vector one with which it spans square tiles, because the loads ``transposed`` are
    contiguous along it.
    """

    spec: KernelSpec
    vector: int | None
    lanes: int
    unroll: int
    depends: tuple[frozenset[str], ...]
    inner: tuple[bool, ...]
    passes: tuple[int, ...]
    ready: tuple[int, ...]
    count: int
    buffered: tuple[int, ...]
    across: int | None = None
    transposed: tuple[int, ...] = ()

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
    reductions = {f"d{i}" for i, d in enumerate(spec.dims) if d.kind == "reduction"}
    inner = tuple(bool(d & reductions) for d in depends)
    passes, ready, count = _passes(spec, inner)
    unroll = int(original.schedule.get("unroll", _unroll(spec)))
    if spec.dims[vector].size.constant is not None:
        unroll = max(1, min(unroll, (spec.dims[vector].size.constant or 0) // lanes))
    buffered = _buffered(spec, inner, passes, count, vector, lanes)
    transposed = () if across is None else tuple(_transposed_loads(spec, vector, across))
    return Plan(
        spec, vector, lanes, unroll, depends, inner, passes, ready, count, buffered, across, transposed
    )


def _point(spec: KernelSpec) -> Plan:
    """The plan of a nest without dimensions."""
    none = (False,) * len(spec.body)
    zeros = (0,) * len(spec.body)
    return Plan(spec, None, 1, 1, dependencies(spec), none, zeros, zeros, 0, ())


def is_heavy(op: str) -> bool:
    """Whether recomputing the op costs more than a load: a polynomial, a division, a call."""
    return op.startswith("libm.") or op in _HEAVY_ARITH or (op.startswith("math.") and op not in _CHEAP_MATH)


def vector_cost(plan: Plan) -> float:
    """Estimated cycles of one vector of points; memory from the second-level cache."""
    total = 0.0
    for i, instr in enumerate(plan.spec.body):
        varies = plan.vector_name in plan.depends[i]
        lanes = plan.lanes if varies else 1
        match instr.op.partition(".")[0]:
            case "load" | "store":
                kind = pattern_of(
                    instr["address"], plan.vector_name, lambda v: plan.vector_name in plan.depends[int(v[1:])]
                )
                total += 2.0 if kind.kind in ("uniform", "contiguous") else 6.0 if i in plan.transposed else 2.0 * lanes
            case "libm":
                total += 40.0 * lanes
            case "constant" | "index":
                pass
            case _:
                total += 15.0 if is_heavy(instr.op) else 8.0 if instr.op in ("arith.divf", "math.sqrt") else 0.5
    return total


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


def _choose_vector(spec: KernelSpec, lanes: int) -> int | None:
    """The dimension whose vectors touch memory most cheaply; among equals a parallel one, then the last."""
    depends = dependencies(spec)
    best: tuple[float, int, int] | None = None
    for v, dim in enumerate(spec.dims):
        name = f"d{v}"
        cost = 0.0
        for i, instr in enumerate(spec.body):
            if instr.op not in ("load", "store"):
                continue
            kind = pattern_of(instr["address"], name, lambda value, name=name: name in depends[int(value[1:])]).kind  # type: ignore[misc]
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
    return best if best is not None and counts[best] and sum(_is_work(i.op) for i in spec.body) <= TILE_WORK else None


def _fills(size: Expr, lanes: int) -> bool:
    return size.constant is None or size.constant >= min(lanes, TILE)


def _is_work(op: str) -> bool:
    return op not in ("constant", "index")


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


def _passes(spec: KernelSpec, inner: tuple[bool, ...]) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """The pass of each instruction, the pass from which its value can be used, and how many passes there are."""
    ready: list[int] = []
    executed: list[int] = []
    for instr in spec.body:
        first = max((ready[a] for a in inputs(instr)), default=0)
        executed.append(first)
        ready.append(first + 1 if instr.op == "reduce" else first)
    rooted = [
        i for i, instr in enumerate(spec.body) if instr.op == "reduce" or (inner[i] and instr.op in ("store", "check"))
    ]
    last = max((executed[i] for i in rooted), default=0)
    for i in rooted:
        if spec.body[i].op == "store":  # an in-place result must not be read again by a later pass
            executed[i] = last
    return tuple(executed), tuple(ready), last + 1 if rooted else 0


def inputs(instr: Instr) -> list[int]:
    """The instructions whose values ``instr`` uses, as arguments or in its address."""
    used = list(instr.args)
    for _, value in instr.attributes:
        if isinstance(value, Expr):
            used += [int(n[1:]) for n in value.variables() if n[0] == "v"]
    return used


def _unroll(spec: KernelSpec) -> int:
    """Vectors in flight: enough to hide latency in a short body, one where the body alone fills the machine."""
    work = sum(12 if is_heavy(i.op) else _is_work(i.op) for i in spec.body)
    return 4 if work <= 10 else 2 if work <= 24 else 1


def _buffered(
    spec: KernelSpec, inner: tuple[bool, ...], passes: tuple[int, ...], count: int, vector: int, lanes: int
) -> tuple[int, ...]:
    """Inner values that cost much, are needed in a later pass again, and whose row fits the stack."""
    if spec.dims[vector].kind == "parallel" or count < 2:
        return ()
    row = 1
    for i, dim in enumerate(spec.dims):
        if dim.kind == "reduction":
            if dim.size.constant is None:
                return ()
            row *= -(-dim.size.constant // lanes) * lanes if i == vector else dim.size.constant
    kept: list[int] = []
    first_use: dict[int, int] = {}
    left = BUFFER_BYTES
    for number in range(count):
        roots = [i for i in range(len(spec.body)) if _is_root(spec, inner, i) and passes[i] == number]
        pending, seen = [a for r in roots for a in inputs(spec.body[r])], set[int]()
        while pending:
            i = pending.pop()
            if i in seen or not inner[i] or i in kept:
                continue
            seen.add(i)
            cost = row * ITEM_SIZE[spec.body[i].dtype]
            if is_heavy(spec.body[i].op) and first_use.get(i, number) < number and cost <= left:
                kept.append(i)
                left -= cost
                continue
            first_use.setdefault(i, number)
            pending += inputs(spec.body[i])
    return tuple(kept)


def _is_root(spec: KernelSpec, inner: tuple[bool, ...], i: int) -> bool:
    return spec.body[i].op == "reduce" or (inner[i] and spec.body[i].op in ("store", "check"))
