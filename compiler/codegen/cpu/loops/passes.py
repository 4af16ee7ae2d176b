"""The work at a point (or vectors of points) of the parallel dimensions: passes over the reduction dimensions.

Two shapes share the code. *Vertical*: the vectors run along a parallel dimension, each lane is its own reduction.
*Horizontal*: the vectors run along the last reduction dimension, there are ``unroll`` accumulators, and lanes are
merged after the loop.
"""

from __future__ import annotations

from collections.abc import Sequence

from effc.compiler.codegen.cpu.body import Body, Scope
from effc.compiler.codegen.cpu.loops.plan import Plan
from effc.compiler.codegen.cpu.loops.reducers import Accumulator, Reducer
from effc.compiler.codegen.cpu.loops.reduction import ReductionLoops, State, cascade_cut
from effc.compiler.codegen.cpu.loops.staging import inputs
from effc.compiler.codegen.cpu.lowp import held_as
from effc.compiler.codegen.cpu.text import Builder, Value, split_type


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
            reduces = [i for i in self.reduces if self.staging.passes[i] == number]
            accumulators = self.accumulate(number, block, scopes)
            self.finish(reduces, accumulators, scopes)
        self.stores(scopes)

    def accumulate(
        self, number: int, block: Scope, scopes: Sequence[Scope], bounds: tuple[Value, Value] | None = None
    ) -> State:
        """Emit pass ``number``; for each of its reduces the accumulator of each scope, lanes merged where horizontal.

        ``bounds``: the part of the outermost reduction dimension to run over.
        """
        for scope in scopes:
            for i in self.outer:
                if self.staging.ready[i] <= number:
                    self.body.value(i, scope)
        reducers = {i: r for i, r in self.reducers.items() if self.staging.passes[i] == number}
        roots = [i for i in self.roots if self.staging.inner[i] and self.staging.passes[i] == number]
        if not reducers and not roots:
            return []
        loops = ReductionLoops(self.body, self.plan, number, reducers, roots, self.buffers, scopes, bounds)
        state = loops.run(block)
        if not self.horizontal:
            return state
        return [[r.across(_merged(r, slots))] for r, slots in zip(reducers.values(), state, strict=True)]

    def widens(self, number: int) -> bool:
        """Whether sums of pass ``number`` end in f64."""
        reducers = [r for i, r in self.reducers.items() if self.staging.passes[i] == number]
        return any(r.cascades for r in reducers) and cascade_cut(self.plan, number) is not None

    def finish(self, reduces: Sequence[int], accumulators: State, scopes: Sequence[Scope]) -> None:
        """Make the accumulators the values of ``reduces``."""
        for i, slots in zip(reduces, accumulators, strict=True):
            for scope, accumulator in zip(scopes, slots, strict=True):
                value = self.reducers[i].result(accumulator)
                if self.body.varies(i, scope):
                    scope.values[i] = value
                    continue
                home = scope.shared or scope
                home.values[i] = self.b.extract(value, 0) if split_type(value.type)[0] > 1 else value

    def stores(self, scopes: Sequence[Scope]) -> None:
        """What happens once at a point: stores and checks outside the reduction dimensions."""
        for i in self.roots:
            if not self.staging.inner[i]:
                for scope in scopes if self.body.varies(i, scopes[0]) else scopes[:1]:
                    self.body.perform(i, scope)

    # -- internals -----------------------------------------------------------------------------------------------------
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


def _merged(reducer: Reducer, accumulators: Sequence[Accumulator]) -> Accumulator:
    """All in one, pairwise."""
    left = list(accumulators)
    while len(left) > 1:
        pairs = zip(left[::2], left[1::2], strict=False)
        odd = left[-1:] if len(left) % 2 else []
        left = [*(reducer.merge(x, y) for x, y in pairs), *odd]
    return left[0]
