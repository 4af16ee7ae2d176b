"""Equal computations, however they are written: a digest that ignores what does not change what a kernel computes.

It does not depend on the order of commutative arguments, of dimensions of one kind and of operands, on the names of values and symbols,
on instructions that nothing uses or that stand twice, on dimensions of size 1, and on the schedule and what follows from it.

Every dimension, symbol and operand is given a colour, first by what it is, then by the digest of the whole spec in which it alone is
marked; of those that are still alike, one is marked for good, until all differ: then their order, and so the text that is hashed, is
fixed. Where several are alike, each is tried and the least digest taken, as long as there are few: so equal digests are always of equal
computations.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from effc.compiler.ir.expr import Call, Expr, var
from effc.compiler.ir.spec import ZEROS, KernelSpec

#: Of each, the first two arguments may be exchanged.
_COMMUTATIVE = frozenset({
    "contract", "math.fma",
    *(f"arith.{op}" for op in ("addf", "mulf", "addi", "muli", "andi", "ori", "xori", "maximumf", "minimumf", "maxnumf", "minnumf",
                               "maxsi", "minsi", "maxui", "minui")),
})  # fmt: skip
#: Comparisons → the same with exchanged arguments.
_EXCHANGED = {"gt": "lt", "ge": "le", "lt": "gt", "le": "ge"}
#: Templates whose dimensions and operands have a meaning by their place.
_BY_PLACE = frozenset({"attention", "scan", "scatter", "block"})
#: Orders of alike variables that are tried at most.
_TRIES = 64

#: Variable (``d0``, ``s1``) or operand (``@2``) → colour.
_Colours = Mapping[str, str]


def computation(spec: KernelSpec) -> str:
    """The digest of what ``spec`` computes."""
    plain = _without_units(spec) if spec.template not in _BY_PLACE else spec
    drawing = _Drawing(plain)
    tries = iter(range(_TRIES))
    return min(_digests(drawing, drawing.first_colours(), tries))


def _digests(drawing: _Drawing, colours: _Colours, tries: Iterator[int]) -> Iterator[str]:
    """Of the spec under every order that colours leave open."""
    if len(set(colours.values())) < len(colours):
        colours = drawing.refined(colours)
    counts = Counter(colours.values())
    alike = sorted(colour for colour, count in counts.items() if count > 1)
    if not alike:
        yield drawing.digest(colours, final=True)
        return
    for at, name in enumerate(n for n, colour in colours.items() if colour == alike[0]):
        if at and next(tries, None) is None:
            return
        yield from _digests(drawing, {**colours, name: _hash("first", alike[0])}, tries)


@dataclass(frozen=True)
class _Drawing:
    spec: KernelSpec

    def first_colours(self) -> _Colours:
        """By kind; by size where that holds no symbol; by place where the template says so."""
        spec, fixed = self.spec, self.spec.template in _BY_PLACE
        zeros = spec.get(ZEROS, ())
        found: dict[str, str] = {}
        for i, dim in enumerate(spec.dims):
            size = "?" if dim.size.constant is None else str(dim.size)
            found[f"d{i}"] = _hash("dim", dim.kind, size, i if fixed else "")
        for i, operand in enumerate(spec.operands):
            sparse = operand.sparsity.numbers if operand.sparsity else ""
            found[f"@{i}"] = _hash("operand", operand.dtype, operand.role, sparse, i in zeros, i if fixed else "")
        for i, symbol in enumerate(spec.symbols):
            found[symbol] = _hash("symbol", i if fixed else "")
        return {name: colour for name, colour in found.items() if not self._scratch(name)}

    def _scratch(self, name: str) -> bool:
        return name[0] == "@" and self.spec.template != "block" and self.spec.operands[int(name[1:])].role == "scratch"

    def refined(self, colours: _Colours) -> _Colours:
        """Each colour with the digest of the spec in which its variable alone is marked, where others share the colour."""
        counts = Counter(colours.values())
        return {
            name: _hash(colour, self.digest({**colours, name: "marked " + colour})) if counts[colour] > 1 else colour
            for name, colour in colours.items()
        }

    def digest(self, colours: _Colours, *, final: bool = False) -> str:
        """Of the spec with colours in the place of names; ``final``: all differ, and ranks stand for them."""
        if final:
            ranks = {colour: str(i) for i, colour in enumerate(sorted(colours.values()))}
            marks: _Colours = {name: f"{self._kind(name)}{ranks[colour]}" for name, colour in colours.items()}
        else:
            marks = colours
        spec = self.spec
        dims = [_hash("dim", marks[f"d{i}"], d.kind, _expr(d.size, marks)) for i, d in enumerate(spec.dims)]
        operands = [
            _hash(
                "operand",
                marks[f"@{i}"],
                o.dtype,
                o.role,
                "" if o.role == "packed" else _expr(o.size, marks),
                o.sparsity,
            )
            for i, o in enumerate(spec.operands)
            if f"@{i}" in marks
        ]
        zeros = sorted(marks[f"@{i}"] for i in spec.get(ZEROS, ()))
        others = _texts(((k, v) for k, v in spec.attributes if k != ZEROS), marks)
        body = [_stage(stage, marks) for stage in spec.stages] or _body(spec, marks)
        return _hash(spec.template, sorted(dims), sorted(operands), zeros, others, body)

    def _kind(self, name: str) -> str:
        return name[0] if name[0] in "d@" else "s"


def _stage(stage: KernelSpec, marks: _Colours) -> list[Any]:
    """Of a block's stage, whose dimensions keep their places."""
    places = {f"d{i}": f"d{i}" for i in range(len(stage.dims))}
    dims = [(d.kind, _expr(d.size, marks)) for d in stage.dims]
    return [stage.template, dims, _body(stage, {**marks, **places})]


def _body(spec: KernelSpec, marks: _Colours) -> list[str]:
    """Digests of what the body leaves behind: its stores and checks. A value is the digest of what makes it, so names, repetitions and
    what is not used vanish. Loads and stores of one operand keep their order where it is also written, checks always.
    """
    values: list[str] = []
    effects: list[str] = []
    written: Counter[int] = Counter()
    checks = 0
    names = dict(marks)
    for number, instr in enumerate(spec.body):
        attributes = _texts(((k, v) for k, v in instr.attributes if k not in ("operand", "predicate")), names)
        args = [values[a] for a in instr.args]
        predicate: str | None = instr.get("predicate")
        if instr.op in _COMMUTATIVE:
            args = [*sorted(args[:2]), *args[2:]]
        if predicate is not None:
            predicate, args = min((predicate, args), (_exchanged(predicate), args[::-1]), key=lambda c: (c[1], c[0]))
        place = ""
        if instr.op in ("load", "store"):
            operand = instr["operand"]
            place = f"{marks[f'@{operand}']} {written[operand]}"
            written[operand] += instr.op == "store"
        if instr.op == "check":
            place, checks = str(checks), checks + 1
        found = _hash(instr.op, instr.dtype, args, attributes, predicate, place)
        values.append(found)
        names[f"v{number}"] = found
        if instr.op in ("store", "check"):
            effects.append(found)
    return sorted(effects)


def _exchanged(predicate: str) -> str:
    for name, other in _EXCHANGED.items():
        if predicate.endswith(name):
            return predicate.removesuffix(name) + other
    return predicate


def _texts(attributes: Iterable[tuple[str, Any]], marks: _Colours) -> list[tuple[str, str]]:
    """Names and values, in the order of names."""
    return sorted((k, _expr(v, marks) if isinstance(v, Expr) else repr(v)) for k, v in attributes)


def _expr(expr: Expr, marks: _Colours) -> str:
    """Of a polynomial: terms and factors in the order of their digests."""
    terms = []
    for mono, coefficient in expr.terms:
        factors = sorted(_call(a, marks) if isinstance(a, Call) else marks.get(a.name, a.name) for a in mono)
        terms.append(f"{coefficient}*{'*'.join(factors)}")
    return "+".join(sorted(terms))


def _call(call: Call, marks: _Colours) -> str:
    args = [_expr(call.lhs, marks), _expr(call.rhs, marks)]
    return _hash(call.fn, sorted(args) if call.fn in ("max", "min") else args)


def _without_units(spec: KernelSpec) -> KernelSpec:
    """Dimensions of size 1 have one index: 0."""
    kept = [i for i, d in enumerate(spec.dims) if d.size.constant != 1]
    names: dict[str, Expr | int] = {f"d{i}": 0 for i in range(len(spec.dims)) if i not in kept}
    names |= {f"d{old}": var(f"d{new}") for new, old in enumerate(kept)}
    body = tuple(
        replace(i, attributes=tuple((k, v.substitute(names) if isinstance(v, Expr) else v) for k, v in i.attributes))
        for i in spec.body
    )
    return replace(spec, dims=tuple(spec.dims[i] for i in kept), body=body)


def _hash(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
