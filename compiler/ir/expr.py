"""Integer expressions over named variables: sizes, strides and addresses.

One class serves the whole compiler. A *size* is an ``Expr`` over the graph's symbols (``s0``, ``s77``); an *address* is an
``Expr`` over loop dimensions (``d0``), symbols, and SSA values of a kernel body (``v12``, for gathers). Expressions are kept as
polynomials in canonical form, so equal expressions compare and hash equal in all but exotic cases, and the coefficient of a
loop dimension (its stride) is read off directly. What is not polynomial stands in it as an opaque atom: ``a // b``, ``a % b``,
``max(a, b)``, ``min(a, b)``; division floors, as Python's.

The text form is Python's own syntax: ``parse(str(e)) == e``.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any


class Var(str):
    """A named integer variable: its name, so that it is compared and hashed as fast as one."""

    __slots__ = ()

    @property
    def name(self) -> str:
        return str(self)


@dataclass(frozen=True)
class Call:
    """A non-polynomial operation: ``fn`` is one of ``//``, ``%``, ``max``, ``min``."""

    fn: str
    lhs: Expr
    rhs: Expr

    def __str__(self) -> str:
        if self.fn in ("max", "min"):
            return f"{self.fn}({self.lhs}, {self.rhs})"
        return f"(({self.lhs}) {self.fn} ({self.rhs}))"


Atom = Var | Call
Monomial = tuple[Atom, ...]

_FOLD: dict[str, Callable[[int, int], int]] = {
    "//": lambda a, b: a // b,
    "%": lambda a, b: a % b,
    "max": max,
    "min": min,
}


@dataclass(frozen=True)
class Expr:
    """A sum of ``coefficient * atom * atom …`` terms, sorted; the empty sum is 0."""

    terms: tuple[tuple[Monomial, int], ...]

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash(self.terms)

    def __reduce__(self) -> tuple[Any, ...]:
        return Expr, (self.terms,)  # what is cached holds in this process alone

    # -- arithmetic -------------------------------------------------------------------------------------------------
    def __add__(self, other: Expr | int) -> Expr:
        return _collect([*self.terms, *as_expr(other).terms])

    __radd__ = __add__

    def __neg__(self) -> Expr:
        return Expr(tuple((m, -c) for m, c in self.terms))

    def __sub__(self, other: Expr | int) -> Expr:
        return self + (-as_expr(other))

    def __rsub__(self, other: int) -> Expr:
        return as_expr(other) - self

    def __mul__(self, other: Expr | int) -> Expr:
        return _collect((a + b, c * d) for a, c in self.terms for b, d in as_expr(other).terms)

    __rmul__ = __mul__

    def __floordiv__(self, other: Expr | int) -> Expr:
        return floordiv(self, as_expr(other))

    def __mod__(self, other: Expr | int) -> Expr:
        return mod(self, as_expr(other))

    # -- questions --------------------------------------------------------------------------------------------------
    @property
    def constant(self) -> int | None:
        """The value, where the expression holds no variable; else None."""
        if not self.terms:
            return 0
        if len(self.terms) == 1 and not self.terms[0][0]:
            return self.terms[0][1]
        return None

    def variables(self) -> frozenset[str]:
        """Names of all variables, also those inside ``//``, ``%``, ``max`` and ``min``."""
        return self._variables

    @cached_property
    def _variables(self) -> frozenset[str]:
        return frozenset(v for m, _ in self.terms for a in m for v in _atom_variables(a))

    def coefficient(self, name: str) -> Expr | None:
        """The factor of ``name`` where the expression is linear in it (0 where it is absent), else None."""
        return _coefficient(self, name)

    def substitute(self, values: Mapping[str, Expr | int], ranges: Mapping[str, Expr] | None = None) -> Expr:
        """Replace variables; ``ranges`` (exclusive upper bounds of variables that start at 0) sharpens ``//`` and ``%``."""
        if not self.variables() & values.keys() and ranges is None:
            return self
        total: list[tuple[Monomial, int]] = []
        for mono, c in self.terms:
            product: list[tuple[Monomial, int]] = [((), c)]
            for atom in mono:
                factor = _substitute_atom(atom, values, ranges).terms
                product = [(a + b, x * y) for a, x in product for b, y in factor]
            total += product
        return _collect(total)

    def evaluate(self, values: Mapping[str, int]) -> int:
        """The integer value; KeyError names a variable without one."""
        total = 0
        for mono, c in self.terms:
            for atom in mono:
                c *= (
                    values[atom.name]
                    if isinstance(atom, Var)
                    else _FOLD[atom.fn](atom.lhs.evaluate(values), atom.rhs.evaluate(values))
                )
            total += c
        return total

    def __str__(self) -> str:
        if not self.terms:
            return "0"
        out = ""
        for mono, c in self.terms:
            body = "*".join(str(a) for a in mono)
            text = str(abs(c)) if not mono else body if abs(c) == 1 else f"{abs(c)}*{body}"
            sign = ("-" if c < 0 else "") if not out else (" - " if c < 0 else " + ")
            out += sign + text
        return out

    def __repr__(self) -> str:
        return f"Expr({self})"


def const(value: int) -> Expr:
    return Expr((((), int(value)),) if value else ())


def var(name: str) -> Expr:
    return Expr((((Var(name),), 1),))


def as_expr(value: Expr | int | str) -> Expr:
    """An ``Expr`` from an int, the text form, or itself."""
    if isinstance(value, Expr):
        return value
    return parse(value) if isinstance(value, str) else const(value)


def floordiv(a: Expr, b: Expr, ranges: Mapping[str, Expr] | None = None) -> Expr:
    """``a // b`` for b > 0, simplified: ``(b*q + r) // b == q`` where ``0 <= r < b`` follows from ``ranges``."""
    if b.constant == 1:
        return a
    if a.constant is not None and b.constant:
        return const(a.constant // b.constant)
    inner = a.terms[0][0] if len(a.terms) == 1 and a.terms[0][1] == 1 else ()
    if len(inner) == 1 and isinstance(inner[0], Call) and inner[0].fn == "//":
        return floordiv(inner[0].lhs, inner[0].rhs * b, ranges)  # (x // m) // b == x // (m*b)
    quotient, rest = _split(a, b)
    if rest == const(0) or _within(rest, b, ranges):
        return quotient
    return quotient + Expr((((Call("//", rest, b),), 1),))


def mod(a: Expr, b: Expr, ranges: Mapping[str, Expr] | None = None) -> Expr:
    """``a % b`` for b > 0, simplified as ``floordiv`` is."""
    if b.constant == 1:
        return const(0)
    if a.constant is not None and b.constant:
        return const(a.constant % b.constant)
    rest = _split(a, b)[1]
    if rest == const(0) or _within(rest, b, ranges):
        return rest
    return Expr((((Call("%", rest, b),), 1),))


def maximum(a: Expr, b: Expr) -> Expr:
    return _extremum("max", a, b)


def minimum(a: Expr, b: Expr) -> Expr:
    return _extremum("min", a, b)


def product(sizes: Iterable[Expr]) -> Expr:
    total = const(1)
    for size in sizes:
        total = total * size
    return total


def recombine(e: Expr) -> Expr:
    """Undo a split into quotient and remainder: ``m*(x // m) + x % m`` → ``x``, at any common factor."""
    for mono, c in e.terms:
        for position, atom in enumerate(mono):
            if not (isinstance(atom, Call) and atom.fn == "%"):
                continue
            factor = Expr(((mono[:position] + mono[position + 1 :], c),))
            high = factor * atom.rhs * floordiv(atom.lhs, atom.rhs)
            if high.terms and set(high.terms) <= set(e.terms):
                return recombine(e - high - factor * Expr((((atom,), 1),)) + factor * atom.lhs)
    return e


@lru_cache(maxsize=4096)
def parse(text: str) -> Expr:
    """Read the text form; ValueError where it is not an integer expression."""
    try:
        return _from_ast(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError) as err:
        raise ValueError(f"not an integer expression: {text!r}") from err


def nonnegative(e: Expr) -> bool:
    """Whether ``e >= 0`` is plain for every value >= 1 of its variables (a size of 0 leaves nothing to compute)."""
    shifted = e.substitute({v: var(v) + 1 for v in e.variables()})
    return all(c >= 0 and all(isinstance(a, Var) for a in m) for m, c in shifted.terms)


# -- internals ------------------------------------------------------------------------------------------------------
def _key(atom: Atom) -> tuple[int, str]:
    return (0 if isinstance(atom, Var) else 1, str(atom))


@lru_cache(maxsize=1 << 14)
def _order(mono: Monomial) -> tuple[bool, list[tuple[int, str]]]:
    """By which terms are sorted; the constant is the last."""
    return not mono, [_key(a) for a in mono]


def _collect(terms: Iterable[tuple[Monomial, int]]) -> Expr:
    total: dict[Monomial, int] = {}
    for mono, c in terms:
        if len(mono) > 1:
            mono = tuple(sorted(mono, key=_key))
        total[mono] = total.get(mono, 0) + c
    kept = [term for term in total.items() if term[1]]
    if len(kept) > 1:
        kept.sort(key=lambda term: _order(term[0]))
    return Expr(tuple(kept))


@lru_cache(maxsize=1 << 14)
def _coefficient(e: Expr, name: str) -> Expr | None:
    taken: list[tuple[Monomial, int]] = []
    for mono, c in e.terms:
        plain = [a for a in mono if isinstance(a, Var) and a == name]
        if any(name in _atom_variables(a) for a in mono if isinstance(a, Call)) or len(plain) > 1:
            return None
        if plain:
            rest = list(mono)
            rest.remove(plain[0])
            taken.append((tuple(rest), c))
    return _collect(taken)


def _atom_variables(atom: Atom) -> frozenset[str]:
    return frozenset((str(atom),)) if isinstance(atom, Var) else atom.lhs.variables() | atom.rhs.variables()


def _substitute_atom(atom: Atom, values: Mapping[str, Expr | int], ranges: Mapping[str, Expr] | None) -> Expr:
    if isinstance(atom, Var):
        return as_expr(values[atom]) if atom in values else Expr((((atom,), 1),))
    lhs, rhs = atom.lhs.substitute(values, ranges), atom.rhs.substitute(values, ranges)
    if atom.fn in ("max", "min"):
        return _extremum(atom.fn, lhs, rhs)
    return (floordiv if atom.fn == "//" else mod)(lhs, rhs, ranges)


def _extremum(fn: str, a: Expr, b: Expr) -> Expr:
    if a == b:
        return a
    if a.constant is not None and b.constant is not None:
        return const(_FOLD[fn](a.constant, b.constant))
    return Expr((((Call(fn, a, b),), 1),))


def _split(a: Expr, b: Expr) -> tuple[Expr, Expr]:
    """``a == b*quotient + rest``, term by term; only a one-term divisor splits."""
    if len(b.terms) != 1:
        return (const(1), const(0)) if a == b else (const(0), a)
    divisor, d = b.terms[0]
    quotient: list[tuple[Monomial, int]] = []
    rest: list[tuple[Monomial, int]] = []
    for mono, c in a.terms:
        left = list(mono)
        try:
            for atom in divisor:
                left.remove(atom)
        except ValueError:
            rest.append((mono, c))
            continue
        if c % d == 0:
            quotient.append((tuple(left), c // d))
        elif divisor:
            rest.append((mono, c))
        else:  # a numeric divisor also takes the whole part of a coefficient
            quotient.append((tuple(left), c // d))
            rest.append((mono, c % d))
    return _collect(quotient), _collect(rest)


def _within(rest: Expr, bound: Expr, ranges: Mapping[str, Expr] | None) -> bool:
    """Whether ``0 <= rest < bound``, every variable of ``rest`` running from 0 below its range."""
    if ranges is None or not rest.variables() <= ranges.keys():
        return rest.constant is not None and bound.constant is not None and 0 <= rest.constant < bound.constant
    largest = _largest(rest, ranges)
    return largest is not None and nonnegative(bound - 1 - largest)


def _largest(e: Expr, ranges: Mapping[str, Expr]) -> Expr | None:
    """A value that ``e`` does not exceed, where it is a sum of terms that are not negative; None where that is not plain."""
    total = const(0)
    for mono, c in e.terms:
        value: Expr | None = const(c) if c > 0 else None
        for atom in mono:
            most = _largest_atom(atom, ranges)
            value = None if value is None or most is None else value * most
        if value is None:
            return None
        total += value
    return total


def _largest_atom(atom: Atom, ranges: Mapping[str, Expr]) -> Expr | None:
    if isinstance(atom, Var):
        return ranges[atom.name] - 1
    inner = _largest(atom.lhs, ranges)
    if inner is None or atom.fn not in ("//", "%"):
        return None
    return floordiv(inner, atom.rhs) if atom.fn == "//" else atom.rhs - 1


def _from_ast(node: ast.expr) -> Expr:
    match node:
        case ast.Constant(value=int(value)):
            return const(value)
        case ast.Name(id=name):
            return var(name)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_from_ast(operand)
        case ast.Call(func=ast.Name(id=fn), args=[a, b]) if fn in ("max", "min"):
            return _extremum(fn, _from_ast(a), _from_ast(b))
        case ast.BinOp(left=left, op=op, right=right):
            lhs, rhs = _from_ast(left), _from_ast(right)
            match op:
                case ast.Add():
                    return lhs + rhs
                case ast.Sub():
                    return lhs - rhs
                case ast.Mult():
                    return lhs * rhs
                case ast.FloorDiv():
                    return floordiv(lhs, rhs)
                case ast.Mod():
                    return mod(lhs, rhs)
                case ast.Pow() if rhs.constant is not None and rhs.constant >= 0:
                    return product([lhs] * rhs.constant)
    raise ValueError(ast.dump(node))
