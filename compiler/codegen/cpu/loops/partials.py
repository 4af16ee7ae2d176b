"""Reductions with few points but many elements: threads share the reduction dimension, each leaves partial accumulators.

They lie on the entry's stack, one block a share, and are merged in the shares' order, so the result depends on the
number of threads only.
"""

from __future__ import annotations

from collections.abc import Sequence

from effc.compiler.codegen.cpu.body import Scope
from effc.compiler.codegen.cpu.loops.plan import Plan
from effc.compiler.codegen.cpu.loops.reducers import Accumulator, Reducer
from effc.compiler.codegen.cpu.loops.reduction import State
from effc.compiler.codegen.cpu.text import Builder, Value, split_type, vector_type
from effc.compiler.codegen.cpu.threads import MAX_PARTIALS

#: Bytes of one part of an accumulator at one point, whatever its type.
_PART_BYTES = 8

#: Bytes a share: with MAX_PARTIALS shares they stay within the 64 KiB of stack that a kernel may use.
SHARE_BYTES = 48 * 1024 // MAX_PARTIALS


def partial_bytes(plan: Plan) -> int | None:
    """Bytes that the accumulators of one share take; None where they are too many or their number is not constant."""
    points = 1
    for i in plan.parallel:
        size = plan.spec.dims[i].size.constant
        if size is None:
            return None
        points *= size
    reduces = [i for i in plan.spec.body if i.op == "reduce"]
    parts = sum(2 if i["kind"] in ("argmax", "argmin") else 1 for i in reduces)
    padded = points + (plan.lanes if plan.vector_is_parallel else 0)  # the last vector is stored whole
    total = parts * padded * _PART_BYTES
    return total if total <= SHARE_BYTES else None


class Partials:
    """Reads and writes accumulators in the blocks at ``base``."""

    def __init__(self, b: Builder, plan: Plan, base: Value, share_bytes: int) -> None:
        self.b = b
        self.plan = plan
        self.base = base
        self.share_bytes = share_bytes

    def save(self, share: Value, accumulators: State, scopes: Sequence[Scope]) -> None:
        """Keep one share's accumulators of the points of ``scopes``."""
        for s, scope in enumerate(scopes):
            parts = [part for slots in accumulators for part in slots[s]]
            for position, part in enumerate(parts):
                stored = self.b.cast("arith.extui", part, "i8") if split_type(part.type)[1] == "i1" else part
                self.b.store(stored, self._pointer(share, position, len(parts), scope, split_type(stored.type)[1]))

    def merged(self, reducers: Sequence[Reducer], shapes: State, threads: Value, scopes: Sequence[Scope]) -> State:
        """All shares' accumulators in one, in order; ``shapes`` has their types."""
        first = self._load(self.b.index(0), shapes, scopes)
        flat = [v for slots in first for a in slots for v in a]
        with self.b.loop(self.b.index(1), threads, 1, flat) as loop:
            carried = _shaped(loop.carried, first)
            loaded = self._load(loop.index, shapes, scopes)
            after = [
                [r.merge(x, y) for x, y in zip(xs, ys, strict=True)]
                for r, xs, ys in zip(reducers, carried, loaded, strict=True)
            ]
            loop.yield_([v for slots in after for a in slots for v in a])
        return _shaped(loop.results, first)

    # -- internals -----------------------------------------------------------------------------------------------------
    def _load(self, share: Value, shapes: State, scopes: Sequence[Scope]) -> State:
        return [
            [self._load_one(share, shapes, k, s, scope) for s, scope in enumerate(scopes)] for k in range(len(shapes))
        ]

    def _load_one(self, share: Value, shapes: State, k: int, s: int, scope: Scope) -> Accumulator:
        count = sum(len(slots[0]) for slots in shapes)
        before = sum(len(slots[0]) for slots in shapes[:k])
        loaded: Accumulator = []
        for position, part in enumerate(shapes[k][s]):
            lanes, element = split_type(part.type)
            stored = "i8" if element == "i1" else element
            pointer = self._pointer(share, before + position, count, scope, stored)
            value = self.b.load(pointer, vector_type(lanes, stored))
            if element == "i1":
                value = self.b.compare("arith.cmpi", "ne", value, self.b.constant(0, "i8", lanes))
            loaded.append(value)
        return loaded

    def _pointer(self, share: Value, position: int, count: int, scope: Scope, element: str) -> Value:
        point = self.b.index(0)
        for i in self.plan.parallel:
            size, here = self.plan.spec.dims[i].size.constant, scope.dim(f"d{i}")
            assert size is not None
            assert here is not None
            point = self.b.add(self.b.mul(point, size), here)
        offset = self.b.add(self.b.mul(share, self.share_bytes), position * (self.share_bytes // count))
        return self.b.element_pointer(self.b.element_pointer(self.base, offset, "i8"), point, element)


def _shaped(values: Sequence[Value], like: State) -> State:
    rest = iter(values)
    return [[[next(rest) for _ in accumulator] for accumulator in slots] for slots in like]
