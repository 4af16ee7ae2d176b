"""``Expr`` → ``i64`` arithmetic, scalar or one value a lane."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from effc.compiler.codegen.cpu.text import I64, Builder, Value, split_type
from effc.compiler.ir.expr import Atom, Call, Expr, Var


def scalar_expr(b: Builder, expr: Expr, values: Mapping[str, Value]) -> Value:
    """The value of ``expr``; ``values`` maps each of its variables to an ``i64`` (a vector of i64 gives a vector)."""
    return expr_value(b, expr, values.__getitem__)


def expr_value(b: Builder, expr: Expr, lookup: Callable[[str], Value]) -> Value:
    """The value of ``expr``, each variable by ``lookup``. Scalars and vectors mix: what depends on a vector is one.

    Invariant terms come first, so that LLVM can hoist their sum out of the loops that only the later terms vary with.
    """
    positive, negative = [t for t in expr.terms if t[1] > 0], [t for t in expr.terms if t[1] < 0]
    total: Value | None = None
    scalars: list[Value] = []
    vectors: list[Value] = []
    for mono, coefficient in positive:
        value = _monomial(b, mono, coefficient, lookup)
        (scalars if value.type == I64 else vectors).append(value)
    for value in (*scalars, *vectors):
        total = value if total is None else lanewise(b, b.add, total, value)
    total = total or b.index(0)
    for mono, coefficient in negative:
        total = lanewise(b, b.sub, total, _monomial(b, mono, -coefficient, lookup))
    return total


def lanewise(b: Builder, fn: Callable[[Value, Value], Value], x: Value, y: Value) -> Value:
    """``fn(x, y)`` after broadcasting a scalar to the other's lanes."""
    lanes = max(split_type(x.type)[0], split_type(y.type)[0])
    return fn(b.broadcast(x, lanes), b.broadcast(y, lanes))


def _monomial(b: Builder, mono: tuple[Atom, ...], coefficient: int, lookup: Callable[[str], Value]) -> Value:
    product = b.index(coefficient)
    for atom in mono:
        value = lookup(atom.name) if isinstance(atom, Var) else _call(b, atom, lookup)
        product = lanewise(b, b.mul, product, value)
    return product


def _call(b: Builder, call: Call, lookup: Callable[[str], Value]) -> Value:
    x, y = expr_value(b, call.lhs, lookup), expr_value(b, call.rhs, lookup)
    match call.fn:
        case "max":
            return lanewise(b, b.maximum, x, y)
        case "min":
            return lanewise(b, b.minimum, x, y)
        case "//":
            return lanewise(b, b.div if _from_zero(call.lhs) else lambda p, q: _floor(b, p, q)[0], x, y)
        case "%":
            return lanewise(b, b.rem if _from_zero(call.lhs) else lambda p, q: _floor(b, p, q)[1], x, y)
    raise ValueError(f"unknown operation {call.fn!r} in an address")


def _from_zero(expr: Expr) -> bool:
    """Whether ``expr >= 0`` for all values >= 0 of its loop variables and symbols."""
    for mono, coefficient in expr.terms:
        if coefficient < 0:
            return False
        for atom in mono:
            if isinstance(atom, Var):
                if atom.name[0] == "v":  # an index from memory may be negative
                    return False
            elif not (_from_zero(atom.lhs) and _from_zero(atom.rhs)):
                return False
    return True


def _floor(b: Builder, x: Value, y: Value) -> tuple[Value, Value]:
    """Floor division and its remainder for y > 0 and any x."""
    quotient, rest = b.op("arith.divsi", x, y), b.op("arith.remsi", x, y)
    zero = b.constant(0, I64, split_type(x.type)[0])
    below = b.compare("arith.cmpi", "slt", rest, zero)
    one = b.constant(1, I64, split_type(x.type)[0])
    return b.select(below, b.op("arith.subi", quotient, one), quotient), b.select(
        below, b.op("arith.addi", rest, y), rest
    )
