"""The work at a point (or vectors of points) of the parallel dimensions: passes over the reduction dimensions.

Two shapes share the code. *Vertical*: the vectors run along a parallel dimension, each lane is its own reduction.
*Horizontal*: the vectors run along the last reduction dimension, there are ``unroll`` accumulators, and lanes are
merged after the loop.
"""

from __future__ import annotations

from collections.abc import Sequence

from effc.compiler.codegen.cpu.addresses import expr_value
from effc.compiler.codegen.cpu.body import Body, Scope
from effc.compiler.codegen.cpu.loops.plan import Plan
from effc.compiler.codegen.cpu.loops.reducers import BLOCK, Accumulator, Reducer
from effc.compiler.codegen.cpu.loops.staging import inputs
from effc.compiler.codegen.cpu.lowp import held_as
from effc.compiler.codegen.cpu.text import Builder, Value, split_type, vector_type

#: For each reduce of the pass, an accumulator for each slot (a lane scope, or an unrolled vector).
State = list[list[Accumulator]]


class Passes:
    """Emits ``points``; ``before_reductions``: pure instructions that need no ``reduce``, in order."""

    def __init__(self, b: Builder, plan: Plan, body: Body) -> None:
        self.b = b
        self.plan = plan
        self.body = body
        self.staging = plan.staging
        instrs = plan.spec.body
        self.roots = [i for i, n in enumerate(instrs) if n.op in ("store", "check")]
        self.reduces = [i for i, n in enumerate(instrs) if n.op == "reduce"]
        pure = [i for i, n in enumerate(instrs) if n.op not in ("store", "check", "reduce")]
        self.outer = [i for i in pure if not self.staging.inner[i]]
        after: set[int] = set()
        for i, instr in enumerate(instrs):
            if instr.op == "reduce" or any(a in after for a in inputs(instr)):
                after.add(i)
        self.before_reductions = [i for i in self.outer if i not in after]
        self.horizontal = bool(plan.reduction) and not plan.vector_is_parallel
        self.buffers = {i: self._buffer(i) for i in self.staging.buffered}
        self.reducers = {i: self._reducer(i) for i in self.reduces}

    def points(self, block: Scope, scopes: Sequence[Scope]) -> None:
        """All that happens at the points of ``scopes`` (lane scopes of ``block``, or ``block`` itself)."""
        for number in range(self.staging.count):
            for scope in scopes:
                for i in self.outer:
                    if self.staging.ready[i] <= number:
                        self.body.value(i, scope)
            self._run(number, block, scopes)
        for i in self.roots:
            if not self.staging.inner[i]:
                for scope in scopes if self.body.varies(i, scopes[0]) else scopes[:1]:
                    self.body.perform(i, scope)

    # -- one pass
    # -------------------------------------------------------------------------------------------------------
    def _run(self, number: int, block: Scope, scopes: Sequence[Scope]) -> None:
        plan = self.plan
        reduces = [i for i in self.reduces if self.staging.passes[i] == number]
        roots = [i for i in self.roots if self.staging.inner[i] and self.staging.passes[i] == number]
        if not reduces and not roots:
            return
        slots = plan.pass_unroll[number] if self.horizontal else len(scopes)
        cut = self._cut(number) if any(self.reducers[i].cascades for i in reduces) else None
        one_pass = _Pass(self, number, reduces, roots, scopes, cut)
        state = [[self.reducers[i].identity(plan.lanes, cut is not None) for _ in range(slots)] for i in reduces]
        state = one_pass.loops(0, block, state)
        for i, accumulators in zip(reduces, state, strict=True):
            reducer = self.reducers[i]
            if self.horizontal:
                while len(accumulators) > 1:
                    pairs = zip(accumulators[::2], accumulators[1::2], strict=False)
                    odd = accumulators[-1:] if len(accumulators) % 2 else []
                    accumulators = [*(reducer.merge(x, y) for x, y in pairs), *odd]
                scopes[0].values[i] = reducer.result(reducer.across(accumulators[0]))
                continue
            for scope, accumulator in zip(scopes, accumulators, strict=True):
                value = reducer.result(accumulator)
                uniform = not self.body.varies(i, scope) and split_type(value.type)[0] > 1
                scope.values[i] = self.b.extract(value, 0) if uniform else value

    def _cut(self, number: int) -> tuple[int, int] | None:
        """(position among the reduction dims, iterations of it in a block) where a cascade widens; None: too short to
        need it.
        """
        plan = self.plan
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

    def _reducer(self, i: int) -> Reducer:
        instr = self.plan.spec.body[i]
        dtypes = [self.plan.spec.body[a].dtype for a in instr.args]
        return Reducer(self.body.ops, instr["kind"], dtypes[0], dtypes[1] if len(dtypes) > 1 else "i64")

    def _buffer(self, i: int) -> Value:
        rows = 1
        for dim in self.plan.reduction:
            size = self.plan.spec.dims[dim].size.constant or 0
            rows *= -(-size // self.plan.lanes) * self.plan.lanes if dim == self.plan.vector else size
        return self.b.stack(rows, held_as(self.plan.spec.body[i].dtype))


class _Pass:
    """The loops of one pass."""

    def __init__(
        self,
        owner: Passes,
        number: int,
        reduces: Sequence[int],
        roots: Sequence[int],
        scopes: Sequence[Scope],
        cut: tuple[int, int] | None,
    ) -> None:
        self.owner = owner
        self.b = owner.b
        self.plan = owner.plan
        self.staging = owner.plan.staging
        self.number = number
        self.work = sorted([*reduces, *roots])
        self.reduces = list(reduces)
        self.reducers = [owner.reducers[i] for i in reduces]
        self.scopes = scopes
        self.cut = cut

    def loops(self, depth: int, block: Scope, state: State) -> State:
        """The loops of the reduction dims from ``depth`` on; the state after them."""
        dims = self.plan.reduction
        if depth == len(dims):
            return self._step([s.inside(block) for s in self.scopes], state)
        vector = self.owner.horizontal and depth == len(dims) - 1
        zero, size = self.b.index(0), self._size(dims[depth])
        if vector:
            return self._vectors(block, size, state)
        if self.cut is None or self.cut[0] != depth:
            return self._range(depth, block, zero, size, 1, state)
        length = self.cut[1]
        with self.b.loop(zero, size, length, _flat(state)) as outer:
            totals = _shaped(outer.carried, state)
            end = self.b.minimum(self.b.add(outer.index, length), size)
            blocks = self._range(depth, block, outer.index, end, 1, self._fresh(totals))
            outer.yield_(_flat(self._widen(totals, blocks)))
        return _shaped(outer.results, state)

    def _range(self, depth: int, block: Scope, start: Value, end: Value, step: int, state: State) -> State:
        with self.b.loop(start, end, step, _flat(state)) as loop:
            inside = block.block({f"d{self.plan.reduction[depth]}": loop.index})
            after = self.loops(depth + 1, inside, _shaped(loop.carried, state))
            loop.yield_(_flat(after))
        return _shaped(loop.results, state)

    # -- the vector dimension, horizontally
    # -------------------------------------------------------------------------------
    def _vectors(self, block: Scope, size: Value, state: State) -> State:
        b, plan = self.b, self.plan
        assert plan.vector is not None
        lanes, unroll = plan.lanes, plan.pass_unroll[self.number]
        step = lanes * unroll
        constant = plan.spec.dims[plan.vector].size.constant
        blocks = b.mul(b.div(size, step), step)
        zero = b.index(0)
        cascades = self.cut is not None and self.cut[0] == len(plan.reduction) - 1
        if constant is None or constant >= step:
            if cascades and self.cut is not None:
                length = self.cut[1] * step
                with b.loop(zero, blocks, length, _flat(state)) as outer:
                    totals = _shaped(outer.carried, state)
                    end = b.minimum(b.add(outer.index, length), blocks)
                    sums = self._vector_range(block, outer.index, end, unroll, self._fresh(totals))
                    outer.yield_(_flat(self._widen(totals, sums)))
                state = _shaped(outer.results, state)
            else:
                state = self._vector_range(block, zero, blocks, unroll, state)
        if constant is not None and constant % step == 0:
            return state
        totals = state
        state = self._fresh(state) if cascades else state
        whole = blocks
        if unroll > 1 and (constant is None or constant % step >= lanes):
            whole = b.mul(b.div(size, lanes), lanes)
            state = self._vector_range(block, blocks, whole, 1, state)
        if constant is None or constant % lanes:
            before, rest = state, b.sub(size, whole)

            def masked() -> list[Value]:
                inside = block.block({})
                return _flat(self._vector_step(inside, whole, 1, b.first_lanes(lanes, rest), before))

            some = b.compare("arith.cmpi", "sgt", rest, zero)
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
        starts = [self.b.add(first, u * lanes) for u in range(count)]
        return self._step([block.lanes_of(name, s, lanes, mask) for s in starts], state)

    # -- one iteration
    # ----------------------------------------------------------------------------------------------------
    def _step(self, scopes: Sequence[Scope], state: State) -> State:
        """Evaluate the pass's reductions, stores and checks at ``scopes``; slot s takes scope s."""
        after = [list(slots) for slots in state]
        for slot, scope in enumerate(scopes):
            self._from_buffers(scope)
            for i in self.work:
                instr = self.plan.spec.body[i]
                if instr.op != "reduce":
                    if slot == 0 or self.owner.body.varies(i, scope):
                        self.owner.body.perform(i, scope)
                    continue
                values = [self.owner.body.vector(a, scope) for a in instr.args]
                k = self.reduces.index(i)
                mask = scope.mask if self.owner.horizontal else None
                after[k][slot] = self.reducers[k].step(after[k][slot], values, mask)
        return after

    def _from_buffers(self, scope: Scope) -> None:
        """Load buffered values of earlier passes; compute and keep those of this pass."""
        for i, buffer in self.owner.buffers.items():
            first = self.staging.passes[i]
            if first > self.number:
                continue
            element = split_type(vector_type(1, held_as(self.plan.spec.body[i].dtype)))[1]
            pointer = self.b.element_pointer(buffer, self._buffer_index(scope), element)
            if first == self.number:
                self.b.store(self.owner.body.vector(i, scope), pointer)
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

    # -- cascades
    # -----------------------------------------------------------------------------------------------------------
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
        return expr_value(self.b, self.plan.spec.dims[dim].size, self.owner.body.symbols.__getitem__)


def _flat(state: State) -> list[Value]:
    return [v for slots in state for accumulator in slots for v in accumulator]


def _shaped(values: Sequence[Value], like: State) -> State:
    rest = iter(values)
    return [[[next(rest) for _ in accumulator] for accumulator in slots] for slots in like]
