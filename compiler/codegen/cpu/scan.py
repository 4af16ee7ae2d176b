"""Template ``scan``: running reductions (cumulative sum, product, maximum, minimum, log of a sum of exponentials).

A spec has parallel dimensions and one of kind ``"reduction"``, the scanned one, last. The value of a ``reduce`` is the
running one, the current point included, at every point; so every ``store`` is an inner one. Kinds: add mul max min and
or xor, argmax and argmin (the running index; the latest of equal ones), and logaddexp.

Where a parallel dimension is contiguous in memory its points are the lanes of a vector; else points are scanned one by
one. Threads share the points. A sequence is scanned in order, so results do not depend on the number of threads.
"""

from __future__ import annotations

from effc.compiler.codegen.cpu.addresses import scalar_expr
from effc.compiler.codegen.cpu.body import Body, Scope
from effc.compiler.codegen.cpu.combine import combine, identity, takes_over
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.codegen.cpu.text import Builder, Value
from effc.compiler.codegen.cpu.threads import Share, parallel_kernel
from effc.compiler.ir.errors import LoweringError
from effc.compiler.ir.expr import Expr, as_expr, product
from effc.compiler.ir.spec import ITEM_SIZE, Instr, KernelSpec

#: Vectors scanned side by side: the chain of dependent additions of one leaves the adders idle for most cycles.
_VECTORS = 2
#: Guesses for the choice of the number of threads: a step of a chain, and a call of a math function.
_STEP_CYCLES, _MATH_CYCLES = 4, 40


def emit(spec: KernelSpec, target: Target) -> str:
    """The module of ``spec``; LoweringError where it is not a scan."""
    if [d.kind for d in spec.dims].count("reduction") != 1 or spec.dims[-1].kind != "reduction":
        raise LoweringError("a scan has one reduction dimension, the last")
    builder = Builder()
    _Scan(builder, spec, target).emit()
    return builder.text()


def contiguous_dim(spec: KernelSpec) -> int | None:
    """The parallel dimension along which most accesses move by one element, if any does and no store jumps."""
    votes: dict[int, int] = {}
    parallel = [k for k, d in enumerate(spec.dims) if d.kind == "parallel" and d.size.constant != 1]
    for instr in spec.body:
        if instr.op not in ("load", "store"):
            continue
        for k in parallel:
            stride = instr["address"].coefficient(f"d{k}")
            if stride is not None and stride.constant == 1:
                votes[k] = votes.get(k, 0) + 1
            elif instr.op == "store":
                votes[k] = votes.get(k, 0) - len(spec.body)
    best = max(votes, key=lambda k: votes[k], default=None)
    return best if best is not None and votes[best] > 0 else None


class _Scan:
    def __init__(self, builder: Builder, spec: KernelSpec, target: Target) -> None:
        self.b = builder
        self.spec = spec
        self.target = target
        self.scanned = len(spec.dims) - 1
        self.vector = contiguous_dim(spec)
        wide = [self._accumulator(i) for i, instr in enumerate(spec.body) if instr.op == "reduce"]
        widest = max(ITEM_SIZE[dtype] for dtype in (*wide, *(i.dtype for i in spec.body if i.dtype)))
        self.lanes = _VECTORS * target.lanes(widest) if self.vector is not None else 1
        self.reduces = [i for i, instr in enumerate(spec.body) if instr.op == "reduce"]

    def _accumulator(self, i: int) -> str:
        """The type in which reduce ``i`` runs: sums and products of f32 in f64, as eager's on CPU (``at::acc_type``)."""
        instr = self.spec.body[i]
        dtype = self.spec.body[instr.args[0]].dtype
        return "f64" if dtype == "f32" and instr["kind"] in ("add", "mul", "logaddexp") else dtype

    def emit(self) -> None:
        spec = self.spec
        sizes = [d.size for d in spec.dims[: self.scanned]]
        if self.vector is not None:
            sizes[self.vector] = (sizes[self.vector] + (self.lanes - 1)) // as_expr(self.lanes)
        maths = sum(i.op.startswith("math.") or i.get("kind") == "logaddexp" for i in spec.body)
        cycles = spec.dims[self.scanned].size * (_STEP_CYCLES + _MATH_CYCLES * maths)
        with parallel_kernel(self.b, spec, product(sizes), cycles) as share:
            body = Body(self.b, spec, self.target, share.pointer, share.symbols, lambda: share.error_cell)
            with self.b.loop(share.lo, share.hi) as unit:
                self._unit(body, share, unit.index, sizes)

    def _unit(self, body: Body, share: Share, unit: Value, sizes: list[Expr]) -> None:
        """Scan the sequences of one unit: one point of the parallel dimensions, or ``lanes`` of them."""
        b = self.b
        dims: dict[str, Value] = {}
        for k in reversed(range(self.scanned)):
            size = scalar_expr(b, sizes[k], share.symbols)
            dims[f"d{k}"], unit = (b.rem(unit, size), b.div(unit, size)) if k else (unit, unit)
        outer = Scope(dims=dims)
        if self.vector is None:
            self._sequence(body, share, outer, None, None)
            return
        name = f"d{self.vector}"
        first = b.mul(dims.pop(name), self.lanes)
        left = b.sub(scalar_expr(b, self.spec.dims[self.vector].size, share.symbols), first)
        full = b.compare("arith.cmpi", "sge", left, b.index(self.lanes))

        def all_lanes() -> list[Value]:
            self._sequence(body, share, Scope(dims=dict(dims)), first, None)
            return []

        def some_lanes() -> list[Value]:
            mask = b.compare("arith.cmpi", "slt", b.iota(self.lanes), b.broadcast(left, self.lanes))
            self._sequence(body, share, Scope(dims=dict(dims)), first, mask)
            return []

        b.choose(full, (), all_lanes, some_lanes)

    def _sequence(self, body: Body, share: Share, outer: Scope, first: Value | None, mask: Value | None) -> None:
        b = self.b
        start: list[Value] = []
        for i in self.reduces:
            instr = self.spec.body[i]
            lanes = self._lanes_of(body, i)
            kind = instr["kind"]
            seen = self._accumulator(i)
            neutral = Instr("constant", (), seen, (("value", identity(kind, seen)),))
            start.append(b.broadcast(body.ops.constant(neutral), lanes))
            if kind in ("argmax", "argmin"):
                start.append(b.constant(0, instr.dtype, lanes))
        end = scalar_expr(b, self.spec.dims[self.scanned].size, share.symbols)
        with b.loop(b.index(0), end, 1, start) as loop:
            block = outer.block({f"d{self.scanned}": loop.index})
            scope = block
            if self.vector is not None and first is not None:
                scope = block.lanes_of(f"d{self.vector}", first, self.lanes, mask)
            loop.yield_(self._step(body, block, scope, loop.carried))

    def _step(self, body: Body, block: Scope, scope: Scope, carried: list[Value]) -> list[Value]:
        """One point of the scanned dimension: update what is carried, then store."""
        state = iter(carried)
        after: list[Value] = []
        for i, instr in enumerate(self.spec.body):
            if instr.op in ("store", "check"):
                body.perform(i, scope)
            if instr.op != "reduce":
                continue
            varies = self._lanes_of(body, i) > 1
            args = [body.vector(a, scope) if varies else body.value(a, scope) for a in instr.args]
            dtype, kind = self.spec.body[instr.args[0]].dtype, instr["kind"]
            running = next(state)
            if kind in ("argmax", "argmin"):
                replace = takes_over(body.ops, kind, dtype, running, args[0])
                after.append(self.b.select(replace, args[0], running))
                after.append(self.b.select(replace, args[1], next(state)))
            else:
                after.append(self._combined(body, i, running, args[0]))
            result = after[-1]
            if instr.dtype == "f32" and self._accumulator(i) == "f64":
                result = self.b.cast("arith.truncf", result, "f32")
            (scope if varies else block).values[i] = result
        return after

    def _combined(self, body: Body, i: int, running: Value, value: Value) -> Value:
        instr, wide = self.spec.body[i], self._accumulator(i)
        if wide != self.spec.body[instr.args[0]].dtype:
            value = self.b.cast("arith.extf", value, wide)
        return combine(body.ops, instr["kind"], wide, running, value)

    def _lanes_of(self, body: Body, i: int) -> int:
        varies = self.vector is not None and f"d{self.vector}" in body.depends[i]
        return self.lanes if varies else 1
