"""The parallel loops of a ``loops`` kernel: shares of threads, outer loops, strips of the vector dimension."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from effc.compiler.codegen.cpu.addresses import expr_value
from effc.compiler.codegen.cpu.body import Body, Scope
from effc.compiler.codegen.cpu.loops.passes import Passes
from effc.compiler.codegen.cpu.loops.plan import TYPICAL_SIZE, Plan, make_plan, vector_cost
from effc.compiler.codegen.cpu.loops.tiles import Tiles
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.codegen.cpu.text import Builder, Value
from effc.compiler.codegen.cpu.threads import Share, parallel_kernel
from effc.compiler.ir.expr import Expr, const, product
from effc.compiler.ir.spec import KernelSpec

#: Units into which the outer loops are cut for threads, where there are that many: shares then differ by a few percent.
UNITS = 32

#: Vectors of the vector dimension that make one unit, where it is the vector dimension that threads share.
CHUNK_VECTORS = 64


def emit(spec: KernelSpec, target: Target) -> str:
    """The module of a ``loops`` kernel."""
    b = Builder()
    plan = make_plan(spec, target)
    cut = cut_work(plan)
    with parallel_kernel(b, spec, cut.units, cut.cycles) as share:
        _Nest(b, plan, cut, target, share).emit()
    return b.text()


@dataclass(frozen=True)
class Cut:
    """How threads share the work. ``leading``: outer dims whose points are units; the others loop inside a unit.

    ``chunk``: elements of the vector dimension in a unit, or None where a unit spans the whole of it.
    """

    leading: tuple[int, ...]
    inner: tuple[int, ...]
    chunk: int | None
    units: Expr
    cycles: Expr


def cut_work(plan: Plan) -> Cut:
    sizes = [d.size for d in plan.spec.dims]
    outer = [i for i in plan.parallel if i not in (plan.vector, plan.across)]
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


def _typical(size: Expr) -> int:
    return TYPICAL_SIZE if size.constant is None else size.constant


def _cycles(plan: Plan, points: Expr) -> Expr:
    lanes = plan.lanes if plan.vector is not None else 1
    cost = max(1, round(16 * vector_cost(plan) / lanes))  # sixteenths of a cycle a point
    return (points * cost + 15) // const(16)


class _Nest:
    def __init__(self, b: Builder, plan: Plan, cut: Cut, target: Target, share: Share) -> None:
        self.b = b
        self.plan = plan
        self.cut = cut
        self.share = share
        self.body = Body(b, plan.spec, target, share.pointer, share.symbols, lambda: share.error_cell)
        self.passes = Passes(b, plan, self.body)
        if plan.across is not None:
            self.tiles = Tiles(b, plan, self.body, self.passes.before_reductions, self.passes.roots)

    def emit(self) -> None:
        root = Scope()
        self._hoist(root, ())
        chunk, vector = self.cut.chunk, self.plan.vector
        if chunk is not None and vector is not None and not self.cut.leading:
            start, end = self.b.mul(self.share.lo, chunk), self.b.mul(self.share.hi, chunk)
            self._strips(root, start, self.b.minimum(end, self._size(vector)))
            return
        with self.b.loop(self.share.lo, self.share.hi) as unit:
            self._unit(root, unit.index)

    def _unit(self, root: Scope, unit: Value) -> None:
        b, vector, chunk = self.b, self.plan.vector, self.cut.chunk
        bounds: tuple[Value, Value] | None = None
        tile: Value | None = None
        if self.plan.across is not None:
            tiles = b.div(b.add(self._size(self.plan.across), self.plan.lanes - 1), self.plan.lanes)
            tile, unit = b.mul(b.rem(unit, tiles), self.plan.lanes), b.div(unit, tiles)
        if vector is not None and self.plan.vector_is_parallel:
            width = self._size(vector)
            bounds = b.index(0), width
            if chunk is not None:
                chunks = b.div(b.add(width, chunk - 1), chunk)
                start = b.mul(b.rem(unit, chunks), chunk)
                bounds = start, b.minimum(b.add(start, chunk), width)
                unit = b.div(unit, chunks)
        dims: dict[str, Value] = {}
        for position, i in reversed(list(enumerate(self.cut.leading))):
            dims[f"d{i}"] = b.rem(unit, self._size(i)) if position else unit
            unit = b.div(unit, self._size(i)) if position else unit
        scope = root.block(dims)
        self._hoist(scope, self.cut.leading)
        if tile is not None:
            self._tiles(scope, tile)
            return
        self._outer(scope, list(self.cut.inner), list(self.cut.leading), bounds)

    def _outer(
        self, scope: Scope, remaining: Sequence[int], opened: list[int], bounds: tuple[Value, Value] | None
    ) -> None:
        """Open the loops of ``remaining``, then do the strips (or the one point) inside."""
        if remaining:
            i = remaining[0]
            with self.b.loop(self.b.index(0), self._size(i)) as loop:
                inside = scope.block({f"d{i}": loop.index})
                self._hoist(inside, [*opened, i])
                self._outer(inside, remaining[1:], [*opened, i], bounds)
        elif bounds is not None:
            self._strips(scope, *bounds)
        else:
            self.passes.points(scope, [scope])

    def _tiles(self, scope: Scope, start: Value) -> None:
        """A row of square tiles at ``start`` of the dimension across; what does not fill a tile goes in strips."""
        b, plan = self.b, self.plan
        assert plan.across is not None
        assert plan.vector is not None
        lanes, zero = plan.lanes, b.index(0)
        width, height = self._size(plan.vector), self._size(plan.across)
        end = b.add(start, lanes)
        fills = b.compare("arith.cmpi", "sle", end, height)
        whole = b.select(fills, b.mul(b.div(width, lanes), lanes), zero)
        with b.when(fills):
            self.tiles.row(scope, start, whole)
        with b.when(b.compare("arith.cmpi", "slt", whole, width)), b.loop(start, b.minimum(end, height)) as loop:
            self._strips(scope.block({f"d{plan.across}": loop.index}), whole, width)

    def _strips(self, scope: Scope, start: Value, end: Value) -> None:
        """The vector dimension from ``start`` to ``end``: blocks of ``unroll`` vectors, single vectors, a masked rest."""
        b, plan = self.b, self.plan
        assert plan.vector is not None
        lanes, step = plan.lanes, plan.lanes * plan.unroll
        size = plan.spec.dims[plan.vector].size.constant
        total = b.sub(end, start)
        blocks = b.add(start, b.mul(b.div(total, step), step))
        if size is None or size >= step:
            with b.loop(start, blocks, step) as loop:
                self._vectors(scope, loop.index, plan.unroll, None)
        whole = blocks
        if plan.unroll > 1 and (size is None or size % step >= lanes):
            whole = b.add(start, b.mul(b.div(total, lanes), lanes))
            with b.loop(blocks, whole, lanes) as loop:
                self._vectors(scope, loop.index, 1, None)
        if size is None or size % lanes:
            rest = b.sub(end, whole)
            with b.when(b.compare("arith.cmpi", "sgt", rest, b.index(0))):
                self._vectors(scope, whole, 1, b.first_lanes(lanes, rest))

    def _vectors(self, scope: Scope, first: Value, count: int, mask: Value | None) -> None:
        name, lanes = f"d{self.plan.vector}", self.plan.lanes
        block = scope.block({})
        self.passes.points(
            block, [block.lanes_of(name, self.b.add(first, u * lanes), lanes, mask) for u in range(count)]
        )

    def _hoist(self, scope: Scope, opened: Sequence[int]) -> None:
        """Emit what varies only with the loops opened so far."""
        names = {f"d{i}" for i in opened}
        for i in self.passes.before_reductions:
            if self.plan.depends[i] <= names:
                self.body.value(i, scope)

    def _size(self, dim: int) -> Value:
        return expr_value(self.b, self.plan.spec.dims[dim].size, self.share.symbols.__getitem__)
