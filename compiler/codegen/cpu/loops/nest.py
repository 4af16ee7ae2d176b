"""The parallel loops of a ``loops`` kernel: shares of threads, outer loops, strips of the vector dimension."""

from __future__ import annotations

from collections.abc import Sequence

from effc.compiler.codegen.cpu.addresses import expr_value
from effc.compiler.codegen.cpu.body import Body, Scope
from effc.compiler.codegen.cpu.loops.cut import Cut, cut_lines, cut_work
from effc.compiler.codegen.cpu.loops.partials import Partials
from effc.compiler.codegen.cpu.loops.passes import Passes
from effc.compiler.codegen.cpu.loops.plan import Plan, make_plan
from effc.compiler.codegen.cpu.loops.tiles import Tiles
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.codegen.cpu.text import Builder, Value
from effc.compiler.codegen.cpu.threads import Share, parallel_kernel
from effc.compiler.ir.spec import KernelSpec


def emit(spec: KernelSpec, target: Target) -> str:
    """The module of a ``loops`` kernel."""
    b = Builder()
    plan = make_plan(spec, target)
    cut = cut_work(plan)

    def finish(share: Share) -> None:
        _Nest(b, plan, cut, target, share).finish_split()

    last = finish if cut.split else None
    with parallel_kernel(b, spec, cut.units, cut.cycles, cut.partial_bytes, last) as share:
        nest = _Nest(b, plan, cut, target, share)
        if cut.split:
            nest.split()
        else:
            nest.emit()
    return b.text()


def emit_lines(b: Builder, plan: Plan, lines: int, target: Target, share: Share) -> None:
    """A share of the lines that the first ``lines`` dimensions of a plan (`plan.plan_lines`) number."""
    _Nest(b, plan, cut_lines(plan, lines), target, share).emit()


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

        self.leaf = self.passes.points

    def split(self) -> None:
        """A share of the outermost reduction dimension, at all points; its accumulators are left for ``finish_split``."""
        b, share, grain = self.b, self.share, self.cut.split
        size = self._size(self.plan.reduction[0])
        bounds = b.mul(share.lo, grain), b.minimum(b.mul(share.hi, grain), size)
        partials = Partials(b, self.plan, share.partials, self.cut.partial_bytes)

        def leave(block: Scope, scopes: Sequence[Scope]) -> None:
            partials.save(share.index, self.passes.accumulate(0, block, scopes, bounds), scopes)

        self.leaf = leave
        self._all_points()

    def finish_split(self) -> None:
        """Merge what the shares have left, at all points, and store the results."""
        partials = Partials(self.b, self.plan, self.share.partials, self.cut.partial_bytes)
        reducers = [self.passes.reducers[i] for i in self.passes.reduces]

        def finish(block: Scope, scopes: Sequence[Scope]) -> None:
            lanes = 1 if self.passes.horizontal else self.plan.lanes
            shapes = [[r.identity(lanes, self.passes.widens(0))] * len(scopes) for r in reducers]
            merged = partials.merged(reducers, shapes, self.share.hi, scopes)
            self.passes.finish(self.passes.reduces, merged, scopes)
            self.passes.stores(scopes)

        self.leaf = finish
        self._all_points()

    def _all_points(self) -> None:
        root = Scope()
        self._hoist(root, ())
        vector = self.plan.vector
        along = self.plan.vector_is_parallel and vector is not None
        bounds = (self.b.index(0), self._size(vector)) if along and vector is not None else None
        self._outer(root, list(self.cut.inner), [], bounds)

    def emit(self) -> None:
        """The units of this share."""
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
            self.leaf(scope, [scope])

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
        if self.plan.joined and not self.plan.reduction:
            count, lanes = 1, lanes * count
        self.leaf(block, [block.lanes_of(name, self.b.add(first, u * lanes), lanes, mask) for u in range(count)])

    def _hoist(self, scope: Scope, opened: Sequence[int]) -> None:
        """Emit what varies only with the loops opened so far."""
        names = {f"d{i}" for i in opened}
        for i in self.passes.before_reductions:
            if self.plan.depends[i] <= names:
                self.body.value(i, scope)

    def _size(self, dim: int) -> Value:
        return expr_value(self.b, self.plan.spec.dims[dim].size, self.share.symbols.__getitem__)
