"""How a kernel walks through memory: which elements a vector takes are neighbours, and what it costs where they are not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from effc.compiler.ir.expr import Call, Expr
from effc.compiler.ir.spec import KernelSpec
from effc.costmodel.features.scale import share

#: How an access moves: along which dimension its address takes steps of one element, or why along none.
WALKS = ("inner", "reduction", "outer", "strided", "broadcast", "gathered")

#: Of a vector of elements that are neighbours; of a tile that is transposed in registers; of elements that are picked up one by one.
_LOAD, _STORE, _TURNED, _PICKED = 0.65, 1.0, 5.0, 22.0
#: Elements on a side of the tile.
_VECTOR = 16
#: How much less a transpose of elements of two bytes costs; how much more one of vectors that cross cache lines; bytes of a line.
_NARROW, _CROSSING, _LINE = 0.3, 0.37, 64
#: The same as the templates count when they ask for threads.
_ASKED_MEMORY, _ASKED_TURNED, _ASKED_PICKED = 2.0, 6.0, 32.0
#: How bad it is where stores, against loads, are not of neighbours.
_STORES = 1.3


@dataclass(frozen=True)
class Access:
    """``along``: the dimension along which its elements are neighbours, -1 for none; ``steps`` of its address; ``item``: bytes."""

    store: bool
    masked: bool
    points: int
    walk: str
    along: int
    steps: Mapping[str, int]
    item: int

    @property
    def crosses(self) -> bool:
        """Whether its vectors begin at other places of a cache line."""
        return any(step != 1 and step * self.item % _LINE for step in self.steps.values())


def moved(accesses: Sequence[Access], sizes: Sequence[int]) -> tuple[float, float, tuple[float, float]]:
    """Cycles of all loads and stores, for vectors along the dimension that most of them have neighbours along; as the template counts them;
    and shares of those that are transposed, and picked up one by one, as is what fills no square tile.
    """
    vectors = vectors_along(accesses)
    total = asked = 0.0
    turned = picked = every = 0.0
    for access in accesses:
        every += access.points
        if access.along == vectors or access.walk == "broadcast":
            each, counted = _STORE if access.store else _LOAD, _ASKED_MEMORY
        elif access.along >= 0 and not access.masked and not access.store:
            length = line_of(access.along, accesses, sizes)
            left = length % _VECTOR / max(length, 1)
            turning = _TURNED * (_NARROW if access.item < 4 else 1.0) * (1 + _CROSSING * access.crosses)
            each, counted = (1 - left) * turning + left * _PICKED, _ASKED_TURNED
            turned, picked = turned + (1 - left) * access.points, picked + left * access.points
        else:
            each, counted = _PICKED, _ASKED_PICKED
            picked += access.points
        total, asked = total + each * access.points, asked + counted * access.points
    return total, asked, (share(turned, every), share(picked, every))


def vectors_along(accesses: Sequence[Access]) -> int:
    """The dimension that vectors run along, as most of what is moved has neighbours along it; -1: none has."""
    weights: Counter[int] = Counter()
    for access in accesses:
        if access.along >= 0:
            weights[access.along] += round(access.points * (_STORES if access.store else 1))
    return max(weights, key=lambda d: weights[d], default=-1)


def line_of(dim: int, accesses: Sequence[Access], sizes: Sequence[int]) -> int:
    """Size of a dimension with those outside it that every access walks as one with it."""
    length = sizes[dim]
    for outer in range(dim - 1, -1, -1):
        if sizes[outer] > 1:
            if any(a.steps.get(f"d{outer}", 0) != a.steps.get(f"d{dim}", 0) * length for a in accesses):
                break
            length *= sizes[outer]
    return length


def walk_of(walked: Sequence[tuple[str, int]], spec: KernelSpec) -> tuple[str, int]:
    """The first of `WALKS` that fits an address of such `steps`, and the dimension along which elements are neighbours, or -1."""
    gathered = strided = False
    for name, step in walked:
        if name[0] == "v":
            gathered = True
        elif name[0] == "d" and step == 1:
            return _along(int(name[1:]), spec), int(name[1:])
        elif name[0] == "d":
            strided = True
    if gathered:
        return "gathered", -1
    return "strided" if strided else "broadcast", -1


def _along(dim: int, spec: KernelSpec) -> str:
    if spec.dims[dim].kind != "parallel":
        return "reduction"
    last = max(i for i, d in enumerate(spec.dims) if d.kind == "parallel")
    return "inner" if dim == last else "outer"


def steps(address: Expr, values: Mapping[str, int]) -> list[tuple[str, int]]:
    """``(variable, step)`` of the terms of an address over loop dimensions (``d*``) and values (``v*``); a step of 0 where it is not
    linear.
    """
    found: list[tuple[str, int]] = []
    for mono, coefficient in address.terms:
        step, names = coefficient, list[tuple[str, int]]()
        for atom in mono:
            if isinstance(atom, Call):
                names += [(n, 0) for n in (*atom.lhs.variables(), *atom.rhs.variables()) if n not in values]
            elif atom in values:
                step *= values[atom]
            else:
                names.append((atom, 1))
        linear = len(names) == 1
        found += [(name, step if linear and single else 0) for name, single in names]
    return found
