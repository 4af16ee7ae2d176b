"""The loops over the reduction dimensions in one pass, with their accumulators as loop-carried values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from effc.compiler.codegen.cpu.addresses import expr_value
from effc.compiler.codegen.cpu.body import Body, Scope
from effc.compiler.codegen.cpu.loops.plan import Plan
from effc.compiler.codegen.cpu.loops.reducers import BLOCK, Accumulator, Reducer
from effc.compiler.codegen.cpu.lowp import held_as
from effc.compiler.codegen.cpu.text import Builder, Value, split_type, vector_type

#: For each reduce of the pass, an accumulator for each slot (a lane scope, or an unrolled vector).
State = list[list[Accumulator]]


class ReductionLoops:
    """Emits pass ``number``: its ``reduces`` and inner ``roots`` (stores, checks), at the points of ``scopes``.

    ``bounds`` restricts the outermost reduction dimension to ``[start, end)`` (a thread's share), else it runs whole.
    """

    def __init__(
        self,
        body: Body,
        plan: Plan,
        number: int,
        reducers: Mapping[int, Reducer],
        roots: Sequence[int],
        buffers: Mapping[int, Value],
        scopes: Sequence[Scope],
        bounds: tuple[Value, Value] | None,
    ) -> None:
        self.body = body
        self.b: Builder = body.b
        self.plan = plan
        self.staging = plan.staging
        self.number = number
        self.work = sorted([*reducers, *roots])
        self.reduces = list(reducers)
        self.reducers = list(reducers.values())
        self.buffers = buffers
        self.scopes = scopes
        self.bounds = bounds
        self.horizontal = bool(plan.reduction) and not plan.vector_is_parallel
        self.slots = plan.pass_unroll[number] if self.horizontal else len(scopes)
        self.cut = cascade_cut(plan, number) if any(r.cascades for r in self.reducers) else None

    def run(self, block: Scope) -> State:
        """Emit the loops; the accumulators after them."""
        wide = self.cut is not None
        return self._loops(0, block, [[r.identity(self.plan.lanes, wide)] * self.slots for r in self.reducers])

    def _loops(self, depth: int, block: Scope, state: State) -> State:
        """The loops of the reduction dims from ``depth`` on; the state after them."""
        dims = self.plan.reduction
        if depth == len(dims):
            return self._step([s.inside(block) for s in self.scopes], state)
        vector = self.horizontal and depth == len(dims) - 1
        bounds = self.bounds if depth == 0 else None
        start, size = bounds or (self.b.index(0), self._size(dims[depth]))
        if vector:
            constant = None if bounds else self.plan.spec.dims[dims[depth]].size.constant
            return self._vectors(block, start, size, constant, state)
        if self.cut is None or self.cut[0] != depth:
            return self._range(depth, block, start, size, 1, state)
        length = self.cut[1]
        with self.b.loop(start, size, length, _flat(state)) as outer:
            totals = _shaped(outer.carried, state)
            end = self.b.minimum(self.b.add(outer.index, length), size)
            blocks = self._range(depth, block, outer.index, end, 1, self._fresh(totals))
            outer.yield_(_flat(self._widen(totals, blocks)))
        return _shaped(outer.results, state)

    def _range(self, depth: int, block: Scope, start: Value, end: Value, step: int, state: State) -> State:
        with self.b.loop(start, end, step, _flat(state)) as loop:
            inside = block.block({f"d{self.plan.reduction[depth]}": loop.index})
            after = self._loops(depth + 1, inside, _shaped(loop.carried, state))
            loop.yield_(_flat(after))
        return _shaped(loop.results, state)

    # -- the vector dimension, horizontally ----------------------------------------------------------------------------
    def _vectors(self, block: Scope, start: Value, end: Value, constant: int | None, state: State) -> State:
        """From ``start`` to ``end``, ``constant`` elements where that is known: blocks of vectors, single ones, a rest."""
        b, plan = self.b, self.plan
        assert plan.vector is not None
        lanes, unroll = plan.lanes, plan.pass_unroll[self.number]
        step = lanes * unroll
        total = b.sub(end, start)
        blocks = b.add(start, b.mul(b.div(total, step), step))
        cascades = self.cut is not None and self.cut[0] == len(plan.reduction) - 1
        if constant is None or constant >= step:
            if cascades and self.cut is not None:
                length = self.cut[1] * step
                with b.loop(start, blocks, length, _flat(state)) as outer:
                    totals = _shaped(outer.carried, state)
                    stop = b.minimum(b.add(outer.index, length), blocks)
                    sums = self._vector_range(block, outer.index, stop, unroll, self._fresh(totals))
                    outer.yield_(_flat(self._widen(totals, sums)))
                state = _shaped(outer.results, state)
            else:
                state = self._vector_range(block, start, blocks, unroll, state)
        if constant is not None and constant % step == 0:
            return state
        totals = state
        state = self._fresh(state) if cascades else state
        whole = blocks
        if unroll > 1 and (constant is None or constant % step >= lanes):
            whole = b.add(start, b.mul(b.div(total, lanes), lanes))
            state = self._vector_range(block, blocks, whole, 1, state)
        if constant is None or constant % lanes:
            before, rest = state, b.sub(end, whole)

            def masked() -> list[Value]:
                inside = block.block({})
                return _flat(self._vector_step(inside, whole, 1, b.first_lanes(lanes, rest), before))

            some = b.compare("arith.cmpi", "sgt", rest, b.index(0))
            flat = _flat(before)
            state = _shaped(b.choose(some, [v.type for v in flat], masked, lambda: flat), before)
        return self._widen(totals, state) if cascades else state

    def _vector_range(self, block: Scope, start: Value, end: Value, count: int, state: State) -> State:
        with self.b.loop(start, end, self.plan.lanes * count, _flat(state)) as loop:
            after = self._vector_step(block.block({}), loop.index, count, None, _shaped(loop.carried, state))
            loop.yield_(_flat(after))
        return _shaped(loop.results, state)

    def _vector_step(self, block: Scope, first: Value, count: int, mask: Value | None, state: State) -> State:
        name, lanes = f"d{self.plan.vector}", self.plan.lanes
        if self.plan.joined:
            return self._step([block.lanes_of(name, first, lanes * count, mask)], state)
        starts = [self.b.add(first, u * lanes) for u in range(count)]
        return self._step([block.lanes_of(name, s, lanes, mask) for s in starts], state)

    # -- one iteration -------------------------------------------------------------------------------------------------
    def _step(self, scopes: Sequence[Scope], state: State) -> State:
        """Evaluate the pass's reductions, stores and checks at ``scopes``; slot s takes scope s, or that part of one that
        joins several.
        """
        after = [list(slots) for slots in state]
        for slot, scope in enumerate(scopes):
            self._from_buffers(scope)
            for i in self.work:
                instr = self.plan.spec.body[i]
                if instr.op != "reduce":
                    if slot == 0 or self.body.varies(i, scope):
                        self.body.perform(i, scope)
                    continue
                values = [self.body.vector(a, scope) for a in instr.args]
                k = self.reduces.index(i)
                mask = scope.mask if self.horizontal else None
                for part in range(max(1, scope.lanes // self.plan.lanes)):
                    parts = [self._part(v, part) for v in values]
                    after[k][slot + part] = self.reducers[k].step(after[k][slot + part], parts, mask)
        return after

    def _part(self, value: Value, part: int) -> Value:
        """The ``part``th vector of those that are joined in ``value``."""
        lanes = self.plan.lanes
        if split_type(value.type)[0] <= lanes:
            return value
        return self.b.shuffle(value, range(part * lanes, (part + 1) * lanes))

    def _from_buffers(self, scope: Scope) -> None:
        """Load kept values of earlier passes; compute and keep those of this pass."""
        for i, store in self.staging.parked:
            first = self.staging.passes[i]
            if first <= self.number:
                place = self.body.access(store, scope, None, scope.lanes)
                if first == self.number:
                    place.store(self.body.vector(i, scope))
                else:
                    scope.values[i] = place.load(None)
        for i, buffer in self.buffers.items():
            first = self.staging.passes[i]
            if first > self.number:
                continue
            element = held_as(self.plan.spec.body[i].dtype)
            pointer = self.b.element_pointer(buffer, self._buffer_index(scope), element)
            if first == self.number:
                self.b.store(self.body.vector(i, scope), pointer)
            else:
                scope.values[i] = self.b.load(pointer, vector_type(scope.lanes, element))

    def _buffer_index(self, scope: Scope) -> Value:
        index = self.b.index(0)
        for dim in self.plan.reduction:
            size = self.plan.spec.dims[dim].size.constant or 0
            if dim == self.plan.vector:
                size = -(-size // self.plan.lanes) * self.plan.lanes
            here = scope.dim(f"d{dim}")
            assert here is not None
            index = self.b.add(self.b.mul(index, size), here)
        return index

    # -- cascades ------------------------------------------------------------------------------------------------------
    def _fresh(self, totals: State) -> State:
        """The state in which a block starts: sums from nothing, other kinds from where they are."""
        lanes = self.plan.lanes
        return [
            [r.identity(lanes, False) if r.cascades else total for total in slots]
            for r, slots in zip(self.reducers, totals, strict=True)
        ]

    def _widen(self, totals: State, blocks: State) -> State:
        return [
            [r.widen(t, s) for t, s in zip(total, block, strict=True)]
            for r, total, block in zip(self.reducers, totals, blocks, strict=True)
        ]

    def _size(self, dim: int) -> Value:
        return expr_value(self.b, self.plan.spec.dims[dim].size, self.body.symbols.__getitem__)


def cascade_cut(plan: Plan, number: int) -> tuple[int, int] | None:
    """Where a cascade widens: (position among the reduction dims, iterations of it in a block); None: too short."""
    below = 1
    for position in reversed(range(len(plan.reduction))):
        dim = plan.reduction[position]
        size = plan.spec.dims[dim].size.constant
        if dim == plan.vector and size is not None:
            size = -(-size // (plan.lanes * plan.pass_unroll[number]))
        if size is None or below * size > 2 * BLOCK:
            return position, max(1, BLOCK // below)
        below *= size
    return None


def _flat(state: State) -> list[Value]:
    return [v for slots in state for accumulator in slots for v in accumulator]


def _shaped(values: Sequence[Value], like: State) -> State:
    rest = iter(values)
    return [[[next(rest) for _ in accumulator] for accumulator in slots] for slots in like]
