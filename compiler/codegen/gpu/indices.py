"""Addresses and sizes, ``Expr``, as tiles of integers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch_mlir import ir

from effc.compiler.codegen.gpu.builder import Builder, dtype_of
from effc.compiler.codegen.gpu.dialect import shape_of
from effc.compiler.ir.expr import Atom, Call, Expr, Var
from effc.compiler.ir.spec import KernelSpec

#: Above this many elements an address does not fit i32.
MOST_I32 = (1 << 31) - 1


@dataclass(frozen=True)
class Step:
    """A variable that is ``start + local``: a scalar, a multiple of ``block``, and a tile of 0, …, ``block - 1``."""

    start: ir.Value
    local: ir.Value
    block: int


class Indices:
    """``values``: an integer tile or scalar for each variable. ``nonnegative``: variables known to be so. ``steps``: those that a loop
    moves by whole blocks.
    """

    def __init__(
        self, b: Builder, values: dict[str, ir.Value], nonnegative: frozenset[str], steps: Mapping[str, Step]
    ) -> None:
        self.b, self.values, self.nonnegative, self.steps = b, values, nonnegative, steps
        self._known: dict[tuple[Expr, str], ir.Value] = {}

    def split(self, e: Expr, dtype: str) -> tuple[ir.Value | None, ir.Value]:
        """``e`` as a scalar that moves with the steps (None: nothing does), and a tile that does not; so the tile is computed once."""
        b, values = self.b, dict(self.values)
        moving: ir.Value | None = None
        for name, step in self.steps.items():
            factor = e.coefficient(name)
            if factor is None or any(shape_of(self.values[v]) for v in factor.variables()):
                return None, self.value(e, dtype)
            if factor.terms:
                part = b.op("arith.muli", widened(b, step.start, dtype), self.value(factor, dtype))
                moving = part if moving is None else b.op("arith.addi", moving, part)
                values[name] = step.local
        still = Indices(b, values, self.nonnegative, {}) if moving is not None else self
        return moving, still.value(e, dtype)

    def value(self, e: Expr, dtype: str = "i32") -> ir.Value:
        """The value of ``e``, computed in ``dtype``: i32 or i64."""
        found = self._known.get((e, dtype))
        if found is None:
            found = self._known[e, dtype] = self._sum(e, dtype)
        return found

    def _sum(self, e: Expr, dtype: str) -> ir.Value:
        b = self.b
        total: ir.Value | None = None
        for monomial, coefficient in e.terms:
            product: ir.Value | None = None
            for atom in monomial:
                value = self._atom(atom, dtype)
                product = value if product is None else b.op("arith.muli", product, value)
            if product is None:
                product = b.constant(coefficient, dtype)
            elif coefficient != 1:
                product = b.op("arith.muli", product, b.constant(coefficient, dtype))
            total = product if total is None else b.op("arith.addi", total, product)
        return b.constant(0, dtype) if total is None else total

    def _atom(self, atom: Atom, dtype: str) -> ir.Value:
        b = self.b
        if isinstance(atom, Var):
            return widened(b, self.values[atom.name], dtype)
        whole = self._block_of(atom)
        if whole is not None:
            return b.op("arith.divsi", widened(b, whole, dtype), self.value(atom.rhs, dtype))
        x, y = self.value(atom.lhs, dtype), self.value(atom.rhs, dtype)
        if atom.fn in ("max", "min"):
            return b.op(f"arith.{atom.fn}si", x, y)
        if self._is_nonnegative(atom.lhs):
            return b.op("arith.divsi" if atom.fn == "//" else "arith.remsi", x, y)
        # Division truncates; of a negative number by a positive one the floor is one less where there is a remainder.
        rest = b.op("arith.remsi", x, y)
        below = b.compare("arith.cmpi", "slt", rest, b.constant(0, dtype))
        if atom.fn == "%":
            return b.select(below, b.op("arith.addi", rest, y), rest)
        quotient = b.op("arith.divsi", x, y)
        return b.select(below, b.op("arith.subi", quotient, b.constant(1, dtype)), quotient)

    def _block_of(self, atom: Call) -> ir.Value | None:
        """The start of a block all of which ``atom`` takes to one quotient: of groups that blocks divide."""
        by, name = atom.rhs.constant, str(atom.lhs)
        step = self.steps.get(name)
        return step.start if step is not None and atom.fn == "//" and by and by % step.block == 0 else None

    def _is_nonnegative(self, e: Expr) -> bool:
        def plain(atom: Atom) -> bool:
            if isinstance(atom, Call):
                return self._is_nonnegative(atom.lhs) and self._is_nonnegative(atom.rhs)
            return atom.name in self.nonnegative

        return all(c >= 0 and all(map(plain, monomial)) for monomial, c in e.terms)


def evaluated(b: Builder, e: Expr, values: Mapping[str, ir.Value], dtype: str = "i32") -> ir.Value:
    """``e`` where the builder stands; ``values``, none of them negative, of its variables. What is divided or compared on the way may be
    larger than ``e`` is: such terms are computed in i64.
    """
    indices = Indices(b, dict(values), frozenset(values), {})
    wide = Expr(tuple((m, c) for m, c in e.terms if any(isinstance(atom, Call) for atom in m)))
    if dtype == "i64" or not wide.terms:
        return indices.value(e, dtype)
    found, rest = widened(b, indices.value(wide, "i64"), dtype), e - wide
    return b.op("arith.addi", found, indices.value(rest, dtype)) if rest.terms else found


def address_dtype(spec: KernelSpec, operand: int, address: Expr) -> str:
    """i32 where it holds the number of each element of an operand, and all that an ``address`` there divides or compares; else i64."""
    size = spec.operands[operand].size.constant
    if size is None or size > MOST_I32:
        return "i64"
    most = dict.fromkeys(spec.symbols, MOST_I32)
    most |= {f"d{i}": MOST_I32 if (n := d.size.constant) is None else max(n - 1, 0) for i, d in enumerate(spec.dims)}
    inside = (e for m, _ in address.terms for atom in m if isinstance(atom, Call) for e in (atom.lhs, atom.rhs))
    return "i32" if all(_most(e, most) <= MOST_I32 for e in inside) else "i64"


def _most(e: Expr, most: Mapping[str, int]) -> int:
    """What neither ``e`` nor anything in it exceeds in size. ``most``: of variables; nothing is known of others."""

    def of_atom(atom: Atom) -> int:
        if isinstance(atom, Var):
            return most.get(atom.name, 1 << 63)
        left, right = _most(atom.lhs, most), _most(atom.rhs, most)
        return right if atom.fn == "%" and left <= MOST_I32 else max(left, right)

    return sum(abs(c) * math.prod(map(of_atom, monomial)) for monomial, c in e.terms)


def widened(b: Builder, value: ir.Value, dtype: str) -> ir.Value:
    """An integer as ``dtype``; a wider one is cut."""
    have = dtype_of(value)
    if have == dtype:
        return value
    wider = int(dtype[1:]) > int(have[1:])
    return b.op("arith.extsi" if wider else "arith.trunci", value, dtype=dtype)
