"""Template ``scan``: running reductions (cumulative sum, product, maximum, minimum, log of a sum of exponentials).

A spec has parallel dimensions and one of kind ``"reduction"``, the scanned one, last. The value of a ``reduce`` is the
running one, the current point included, at every point; so every ``store`` is an inner one. Kinds: add mul max min and
or xor, argmax and argmin (the running index; the latest of equal ones), and logaddexp.

Where a parallel dimension is contiguous in memory, or the body calls math functions, points are the lanes of a vector;
else a few are scanned side by side in scalar code. Threads share the points. A sequence is scanned in order, so results do
not depend on the number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

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
#: Sequences scanned side by side where their points are not contiguous and there is no math function to vectorise: on
#: a 512x1024 f32 tensor, gathers and scatters were five times slower than scalar chains.
_CHAINS = _FEW = 4
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


def longest_dim(spec: KernelSpec) -> int | None:
    """The parallel dimension of most points, where it has enough of them to scan several side by side."""
    sizes = {k: d.size.constant for k, d in enumerate(spec.dims) if d.kind == "parallel"}
    best = max(sizes, key=lambda k: math.inf if sizes[k] is None else sizes[k] or 0, default=None)
    return best if best is not None and (sizes[best] or _FEW) >= _FEW else None


Enter = Callable[[Scope], Scope]


class _Scan:
    def __init__(self, builder: Builder, spec: KernelSpec, target: Target) -> None:
        self.b = builder
        self.spec = spec
        self.target = target
        self.scanned = len(spec.dims) - 1
        self.maths = sum(i.op.startswith("math.") or i.get("kind") == "logaddexp" for i in spec.body)
        contiguous = contiguous_dim(spec)
        #: The dimension of which a unit takes several points, as the lanes of a vector or as so many scalar chains.
        self.along = longest_dim(spec) if contiguous is None else contiguous
        wide = [self._accumulator(i) for i, instr in enumerate(spec.body) if instr.op == "reduce"]
        widest = max(ITEM_SIZE[dtype] for dtype in (*wide, *(i.dtype for i in spec.body if i.dtype)))
        vectorised = contiguous is not None or (self.along is not None and self.maths > 0)
        self.lanes = _VECTORS * target.lanes(widest) if vectorised else 1
        self.points = self.lanes if vectorised else _CHAINS
        self.reduces = [i for i, instr in enumerate(spec.body) if instr.op == "reduce"]

    def _accumulator(self, i: int) -> str:
        """The type in which reduce ``i`` runs: sums and products of f32 in f64, as eager's on CPU (``at::acc_type``)."""
        instr = self.spec.body[i]
        dtype = self.spec.body[instr.args[0]].dtype
        return "f64" if dtype == "f32" and instr["kind"] in ("add", "mul", "logaddexp") else dtype

    def emit(self) -> None:
        spec = self.spec
        sizes = [d.size for d in spec.dims[: self.scanned]]
        if self.along is not None:
            sizes[self.along] = (sizes[self.along] + (self.points - 1)) // as_expr(self.points)
        cycles = spec.dims[self.scanned].size * (_STEP_CYCLES + _MATH_CYCLES * self.maths)
        with parallel_kernel(self.b, spec, product(sizes), cycles) as share:
            body = Body(self.b, spec, self.target, share.pointer, share.symbols, lambda: share.error_cell)
            with self.b.loop(share.lo, share.hi) as unit:
                self._unit(body, share, unit.index, sizes)

    def _unit(self, body: Body, share: Share, unit: Value, sizes: list[Expr]) -> None:
        """Scan the sequences of one unit: one point of the parallel dimensions, or ``self.points`` of them."""
        b = self.b
        dims: dict[str, Value] = {}
        for k in reversed(range(self.scanned)):
            size = scalar_expr(b, sizes[k], share.symbols)
            dims[f"d{k}"], unit = (b.rem(unit, size), b.div(unit, size)) if k else (unit, unit)
        if self.along is None:
            self._sequences(body, share, dims, [lambda block: block])
            return
        name = f"d{self.along}"
        first = b.mul(dims.pop(name), self.points)
        end = scalar_expr(b, self.spec.dims[self.along].size, share.symbols)
        left = b.sub(end, first)
        full = b.compare("arith.cmpi", "sge", left, b.index(self.points))

        def all_points() -> list[Value]:
            if self.lanes > 1:
                self._sequences(body, share, dims, [lambda block: block.lanes_of(name, first, self.lanes)])
                return []
            rows = [b.add(first, j) for j in range(self.points)]
            self._sequences(body, share, dims, [_entering(name, row) for row in rows])
            return []

        def some_points() -> list[Value]:
            if self.lanes > 1:
                mask = b.compare("arith.cmpi", "slt", b.iota(self.lanes), b.broadcast(left, self.lanes))
                self._sequences(body, share, dims, [lambda block: block.lanes_of(name, first, self.lanes, mask)])
                return []
            with b.loop(first, end) as row:
                self._sequences(body, share, dims, [_entering(name, row.index)])
            return []

        b.choose(full, (), all_points, some_points)

    def _sequences(self, body: Body, share: Share, dims: Mapping[str, Value], enter: Sequence[Enter]) -> None:
        """Scan side by side, one sequence (or vector of them) for each of ``enter``, which opens its scope in the loop."""
        b = self.b
        start = [value for _ in enter for value in self._start(body)]
        end = scalar_expr(b, self.spec.dims[self.scanned].size, share.symbols)
        with b.loop(b.index(0), end, 1, start) as loop:
            block = Scope(dims=dict(dims)).block({f"d{self.scanned}": loop.index})
            state = iter(loop.carried)
            loop.yield_([value for open_scope in enter for value in self._step(body, open_scope(block), state)])

    def _start(self, body: Body) -> list[Value]:
        start: list[Value] = []
        for i in self.reduces:
            instr = self.spec.body[i]
            lanes = self._lanes_of(body, i)
            kind = instr["kind"]
            seen = self._accumulator(i)
            neutral = Instr("constant", (), seen, (("value", identity(kind, seen)),))
            start.append(self.b.broadcast(body.ops.constant(neutral), lanes))
            if kind in ("argmax", "argmin"):
                start.append(self.b.constant(0, instr.dtype, lanes))
        return start

    def _step(self, body: Body, scope: Scope, state: Iterator[Value]) -> list[Value]:
        """One point of the scanned dimension: update what is carried, and store."""
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
            home = scope if varies or scope.shared is None else scope.shared
            home.values[i] = result
        return after

    def _combined(self, body: Body, i: int, running: Value, value: Value) -> Value:
        instr, wide = self.spec.body[i], self._accumulator(i)
        if wide != self.spec.body[instr.args[0]].dtype:
            value = self.b.cast("arith.extf", value, wide)
        return combine(body.ops, instr["kind"], wide, running, value)

    def _lanes_of(self, body: Body, i: int) -> int:
        return self.lanes if f"d{self.along}" in body.depends[i] else 1


def _entering(name: str, value: Value) -> Enter:
    return lambda block: block.block({name: value})
