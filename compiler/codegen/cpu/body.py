"""Evaluates a spec's body at a point or a vector of points, emitting each instruction once a scope.

A *scope* says where we are: the values of the loop variables, which dimension is vectorised, and the lanes' mask.
Instructions that do not vary with the vector dimension are emitted as scalars and shared by the lane scopes under one
block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from effc.compiler.codegen.cpu import saturation, scaled
from effc.compiler.codegen.cpu.access import Access, as_index, pattern_of
from effc.compiler.codegen.cpu.addresses import expr_value, lanewise
from effc.compiler.codegen.cpu.ops import OpEmitter
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.codegen.cpu.text import Builder, Value, split_type
from effc.compiler.ir.errors import LoweringError
from effc.compiler.ir.expr import Expr
from effc.compiler.ir.spec import KernelSpec


@dataclass
class Scope:
    """``dims``: loop variable → i64 (the vector dimension's is that of lane 0). ``values``: body values already emitted
    here.

    ``lanes`` is 1 and ``vector`` None for a scalar scope. ``mask``: i1 a lane, or None where all lanes are in range.
    ``shared``: the scalar scope of the same block of code, where values that do not vary with the lanes are kept for
    all its lane scopes.
    """

    parent: Scope | None = None
    shared: Scope | None = None
    dims: dict[str, Value] = field(default_factory=dict)
    vector: str | None = None
    lanes: int = 1
    mask: Value | None = None
    values: dict[int, Value] = field(default_factory=dict)

    def dim(self, name: str) -> Value | None:
        if name in self.dims:
            return self.dims[name]
        found = self.shared.dim(name) if self.shared is not None else None
        return found if found is not None or self.parent is None else self.parent.dim(name)

    def find(self, i: int) -> Value | None:
        if i in self.values:
            return self.values[i]
        found = self.shared.find(i) if self.shared is not None else None
        return found if found is not None or self.parent is None else self.parent.find(i)

    def block(self, dims: Mapping[str, Value]) -> Scope:
        """A scalar scope inside this one, for the body of a loop that has just been opened."""
        return Scope(parent=self, dims=dict(dims))

    def lanes_of(self, vector: str, first: Value, lanes: int, mask: Value | None = None) -> Scope:
        """A lane scope in this (scalar) block: ``lanes`` points of ``vector`` from ``first``."""
        return Scope(self, self, {vector: first}, vector, lanes, mask)

    def inside(self, block: Scope) -> Scope:
        """This lane scope continued in a deeper block of code."""
        return Scope(self, block, {}, self.vector, self.lanes, self.mask)


class Body:
    """Emits instructions of ``spec.body`` on demand. ``reduce`` and ``contract`` results are put into scopes by the
    template.
    """

    def __init__(
        self,
        builder: Builder,
        spec: KernelSpec,
        target: Target,
        pointer: Callable[[int], Value],
        symbols: Mapping[str, Value],
        error_cell: Callable[[], Value] | None = None,
    ) -> None:
        self.b = builder
        self.spec = spec
        self.ops = OpEmitter(builder, target)
        self.pointer = pointer
        self.symbols = symbols
        self.error_cell = error_cell
        self.depends = dependencies(spec)

    def varies(self, i: int, scope: Scope) -> bool:
        """Whether instruction ``i`` differs from lane to lane of ``scope``."""
        return scope.vector is not None and scope.vector in self.depends[i]

    def value(self, i: int, scope: Scope) -> Value:
        """The value of instruction ``i``: a scalar where it does not vary with the vector dimension, else all lanes."""
        found = scope.find(i)
        if found is not None:
            return found
        uniform = scope.vector is not None and not self.varies(i, scope)
        home = scope.shared if uniform and scope.shared is not None else scope
        result = self._emit(i, home)
        home.values[i] = result
        return result

    def vector(self, i: int, scope: Scope) -> Value:
        """As ``value``, broadcast to all lanes."""
        return self.b.broadcast(self.value(i, scope), scope.lanes)

    def perform(self, i: int, scope: Scope) -> None:
        """Emit a ``store`` or ``check``."""
        instr = self.spec.body[i]
        args = instr.args
        if scope.vector is not None and not self.varies(i, scope) and scope.shared is not None:
            scope = scope.shared
        if instr.op == "check":
            self._check(i, scope)
            return
        varies = self.varies(i, scope)
        value = self.vector(args[0], scope) if varies else self.value(args[0], scope)
        mask = None if len(args) < 2 else self.vector(args[1], scope) if varies else self.value(args[1], scope)
        access = self.access(i, scope, mask, scope.lanes if varies else 1)
        access.store(value)

    # -- internals -----------------------------------------------------------------------------------------------------
    def _emit(self, i: int, scope: Scope) -> Value:
        instr = self.spec.body[i]
        match instr.op:
            case "constant":
                return self.ops.constant(instr)
            case "index":
                return expr_value(self.b, instr["expr"], lambda name: self._lane(name, scope))
            case "load":
                lanes = scope.lanes if self.varies(i, scope) else 1
                mask, other = None, None
                if instr.args:
                    mask = self.b.broadcast(self.value(instr.args[0], scope), lanes)
                    other = self.b.broadcast(self.value(instr.args[1], scope), lanes)
                return self.access(i, scope, mask, lanes).load(other)
            case "reduce" | "contract":
                raise LoweringError(f"instruction {i} ({instr.op}) is used before its loop has ended")
        lanes = scope.lanes if self.varies(i, scope) else 1
        found = self._saturated(i, scope, lanes) or self._scaled(i, scope, lanes)
        if found is not None:
            return found
        args = [self.b.broadcast(self.value(a, scope), lanes) for a in instr.args]
        return self.ops.emit(instr, args, [self.spec.body[a].dtype for a in instr.args])

    def _saturated(self, i: int, scope: Scope, lanes: int) -> Value | None:
        """Instruction ``i`` where it rounds to bytes, and there are instructions for it."""
        found = saturation.find(self.spec.body, i)
        if found is None:
            return None
        factor = None if found.factor is None else self.b.broadcast(self.value(found.factor, scope), lanes)
        y = self._scaled(found.value, scope, lanes, factor) if found.times <= scaled.MOST_FACTOR else None
        if y is None:
            y = self.b.broadcast(self.value(found.value, scope), lanes)
            y = y if factor is None else self.b.op("arith.mulf", y, factor)
        return saturation.emit(self.b, self.ops.target, found, y)

    def _scaled(self, i: int, scope: Scope, lanes: int, factor: Value | None = None) -> Value | None:
        """Instruction ``i``, times ``factor``, where it is a scaled sum (`scaled`), and there is an instruction for it."""
        found = scaled.find(self.spec.body, i) if self.ops.target.has("fma") else None
        if found is None:
            return None
        value, scale, bias = (
            self.b.broadcast(self.value(k, scope), lanes) for k in (found.value, found.scale, found.bias)
        )
        if factor is not None:  # of columns alone: LLVM multiplies them once for all rows
            scale, bias = (self.b.op("arith.mulf", x, factor) for x in (scale, bias))
        return self.b.op("math.fma", value, scale, bias)

    def access(self, i: int, scope: Scope, mask: Value | None, lanes: int) -> Access:
        instr = self.spec.body[i]
        address: Expr = instr["address"]
        operand = self.spec.operands[instr["operand"]]
        vector = scope.vector if lanes > 1 else None
        pattern = pattern_of(address, vector, lambda name: lanes > 1 and self.varies(int(name[1:]), scope))
        if pattern.kind == "uniform" and mask is not None and split_type(mask.type)[0] > 1:
            pattern = type(pattern)("strided", pattern.stride)
        if lanes > 1 and pattern.kind != "uniform" and scope.mask is not None:
            mask = scope.mask if mask is None else self.b.op("arith.andi", mask, scope.mask)
        limit = None
        if any(n[0] == "v" for n in address.variables()):
            limit = expr_value(self.b, operand.size, self.symbols.__getitem__)
        return Access(
            self.b,
            self.pointer(instr["operand"]),
            operand.dtype,
            address,
            pattern,
            lanes,
            lambda name: self._scalar(name, scope),
            lambda name: self._lane(name, scope),
            mask,
            limit,
        )

    def _scalar(self, name: str, scope: Scope) -> Value:
        """A variable's value in lane 0."""
        if name[0] == "v":
            return as_index(self.b, self.value(int(name[1:]), scope))
        dim = scope.dim(name)
        return self.symbols[name] if dim is None else dim

    def _lane(self, name: str, scope: Scope) -> Value:
        """A variable's value: in every lane where it varies, else a scalar."""
        value = self._scalar(name, scope)
        if name != scope.vector:
            return value
        return lanewise(self.b, self.b.add, value, self.b.iota(scope.lanes))

    def _check(self, i: int, scope: Scope) -> None:
        """Store 1 + i into the error cell where the condition is false in any enabled lane."""
        assert self.error_cell is not None, "this template gives the body no error cell"
        ok = self.value(self.spec.body[i].args[0], scope)
        lanes = split_type(ok.type)[0]
        bad = self.b.op("arith.xori", ok, self.b.constant(1, "i1", lanes))
        if lanes > 1:
            bad = bad if scope.mask is None else self.b.op("arith.andi", bad, scope.mask)
            bad = self.b.emit(f"vector.reduction <or>, {bad.name} : {bad.type} into i1", "i1")
        with self.b.when(bad):
            self.b.store(self.b.index(1 + i), self.error_cell())


def dependencies(spec: KernelSpec) -> tuple[frozenset[str], ...]:
    """For each instruction the loop dimensions with which it varies, through its arguments and addresses."""
    names = [f"d{k}" for k in range(len(spec.dims))]
    parallel = frozenset(n for n, d in zip(names, spec.dims, strict=True) if d.kind == "parallel")
    found: list[frozenset[str]] = []
    for instr in spec.body:
        depends: frozenset[str] = frozenset().union(*(found[a] for a in instr.args))
        for _, value in instr.attributes:
            if isinstance(value, Expr):
                for name in value.variables():
                    if name[0] == "v" and name[1:].isdigit():
                        depends |= found[int(name[1:])]
                    elif name in names:
                        depends |= {name}
        found.append(depends & parallel if instr.op in ("reduce", "contract") else depends)
    return tuple(found)
