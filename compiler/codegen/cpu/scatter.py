"""Template ``scatter``: for every point, in order, ``target[address] = value`` or ``target[address] op= value``.

All dimensions are parallel in the spec, but points that may meet in one element are visited in row-major order by one
thread, so that the result does not depend on the number of threads. The body's last instruction is a ``store`` with the
attribute ``combine``: ``set``, ``add``, ``mul``, ``max`` (or ``amax``), ``min`` (or ``amin``). The target is a
``readwrite`` operand. The spec's attribute ``independent_dims`` = n says that points which differ in their first n
dimensions never meet.

Where any ``check`` of the body fails, the point stores nothing. Where the last dimension walks along the target, its
points are the lanes of a vector; if every address determines it (``row * size + d``), threads share it as well.
"""

from __future__ import annotations

from effc.compiler.codegen.cpu.addresses import scalar_expr
from effc.compiler.codegen.cpu.body import Body, Scope, dependencies
from effc.compiler.codegen.cpu.combine import combine
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.codegen.cpu.text import Builder, Value
from effc.compiler.codegen.cpu.threads import Share, parallel_kernel
from effc.compiler.ir.errors import LoweringError
from effc.compiler.ir.expr import Expr, as_expr, const, minimum, mod, product, var
from effc.compiler.ir.spec import ITEM_SIZE, KernelSpec

#: Elements of the last dimension in one unit of work, where threads share it.
_BLOCK = 512
#: A guess for the choice of the number of threads: reading, combining and writing an element.
_POINT_CYCLES = 4


def emit(spec: KernelSpec, target: Target) -> str:
    """The module of ``spec``; LoweringError where it is not a scatter."""
    outside = ("store", "reduce", "contract")
    if not spec.body or spec.body[-1].op != "store" or any(i.op in outside for i in spec.body[:-1]):
        raise LoweringError("a scatter computes one value a point and stores it last")
    builder = Builder()
    _Scatter(builder, spec, target).emit()
    return builder.text()


class _Scatter:
    def __init__(self, builder: Builder, spec: KernelSpec, target: Target) -> None:
        self.b = builder
        self.spec = spec
        self.target = target
        self.store = len(spec.body) - 1
        self.last = len(spec.dims) - 1
        instr = spec.body[self.store]
        self.dtype = spec.operands[instr["operand"]].dtype
        kind = instr.get("combine", "set")
        self.kind = {"amax": "max", "amin": "min"}.get(kind, kind)
        self.independent = min(spec.get("independent_dims", 0), len(spec.dims))
        self.lanes = self._choose_lanes()
        self.split = self._last_is_independent()

    def _choose_lanes(self) -> int:
        """More than one where the last dimension is contiguous in the target and in no index of it."""
        address: Expr = self.spec.body[self.store]["address"]
        if self.last < 0:
            return 1
        name = f"d{self.last}"
        stride = address.coefficient(name)
        depends = dependencies(self.spec)
        indexed = {int(v[1:]) for v in address.variables() if v[0] == "v"}
        if stride is None or stride.constant != 1 or any(name in depends[i] for i in indexed):
            return 1
        return self.target.lanes(max(ITEM_SIZE[i.dtype] for i in self.spec.body if i.dtype))

    def _last_is_independent(self) -> bool:
        """Whether points that differ in the last dimension never meet, whatever the others are."""
        if self.last < 0:
            return False
        if self.independent == len(self.spec.dims):
            return True
        name, size = f"d{self.last}", self.spec.dims[self.last].size
        address: Expr = self.spec.body[self.store]["address"]
        return self.lanes > 1 and mod(address, size, {name: size}) == var(name)

    # -- loops ------------------------------------------------------------------------------------------------------
    def emit(self) -> None:
        spec = self.spec
        outer = [d.size for d in spec.dims[: min(self.independent, max(self.last, 0))]]
        blocks = const(1)
        width = spec.dims[self.last].size if self.last >= 0 else const(1)
        if self.split:
            blocks = (width + (_BLOCK - 1)) // as_expr(_BLOCK)
            width = minimum(width, const(_BLOCK))
        points = product([d.size for d in spec.dims[len(outer) : max(self.last, 0)]]) * width
        units = product(outer) * blocks
        with parallel_kernel(self.b, spec, units, points * _POINT_CYCLES) as share:
            body = Body(self.b, spec, self.target, share.pointer, share.symbols, lambda: share.error_cell)
            with self.b.loop(share.lo, share.hi) as loop:
                self._unit(body, share, loop.index, outer, blocks)

    def _unit(self, body: Body, share: Share, unit: Value, outer: list[Expr], blocks: Expr) -> None:
        b = self.b
        count = scalar_expr(b, blocks, share.symbols)
        block, unit = b.rem(unit, count), b.div(unit, count)
        dims: dict[str, Value] = {}
        for k in reversed(range(len(outer))):
            size = scalar_expr(b, outer[k], share.symbols)
            dims[f"d{k}"], unit = (b.rem(unit, size), b.div(unit, size)) if k else (unit, unit)
        self._serial(body, share, Scope(dims=dims), len(outer), block)

    def _serial(self, body: Body, share: Share, scope: Scope, k: int, block: Value) -> None:
        """The loops over dimension ``k`` and those inside it."""
        b = self.b
        if self.last < 0:
            self._point(body, scope)
            return
        size = scalar_expr(b, self.spec.dims[k].size, share.symbols)
        if k < self.last:
            with b.loop(b.index(0), size) as loop:
                self._serial(body, share, scope.block({f"d{k}": loop.index}), k + 1, block)
            return
        low, high = b.index(0), size
        if self.split:
            low = b.mul(block, _BLOCK)
            high = b.minimum(b.add(low, _BLOCK), size)
        name = f"d{k}"
        self._hoist(body, scope, name)
        if self.lanes == 1:
            with b.loop(low, high) as loop:
                self._point(body, scope.block({name: loop.index}))
            return
        whole = b.sub(high, b.rem(b.sub(high, low), self.lanes))
        with b.loop(low, whole, self.lanes) as loop:
            self._point(body, scope.block({}).lanes_of(name, loop.index, self.lanes, None))
        with b.when(b.compare("arith.cmpi", "slt", whole, high)):
            left = b.broadcast(b.sub(high, whole), self.lanes)
            mask = b.compare("arith.cmpi", "slt", b.iota(self.lanes), left)
            self._point(body, scope.block({}).lanes_of(name, whole, self.lanes, mask))

    def _hoist(self, body: Body, scope: Scope, name: str) -> None:
        """Compute what the last dimension does not change, indices above all, before its loop."""
        for i, instr in enumerate(self.spec.body):
            if instr.op not in ("store", "check") and name not in body.depends[i]:
                body.value(i, scope)

    # -- one point, or a vector of them -------------------------------------------------------------------------------
    def _point(self, body: Body, scope: Scope) -> None:
        b = self.b
        guard: Value | None = None
        for i, instr in enumerate(self.spec.body):
            if instr.op == "check":
                body.perform(i, scope)
                ok = body.vector(instr.args[0], scope)
                guard = ok if guard is None else b.op("arith.andi", guard, ok)
        instr = self.spec.body[self.store]
        if len(instr.args) > 1:
            mask = body.vector(instr.args[1], scope)
            guard = mask if guard is None else b.op("arith.andi", guard, mask)
        access = body.access(self.store, scope, guard, scope.lanes)
        value = body.vector(instr.args[0], scope)
        if self.kind != "set":
            value = combine(body.ops, self.kind, self.dtype, access.load(None), value)
        access.store(value)
