"""``Site``: a kernel call of a compiled model that a rewrite may change.

Its name is stable: it comes from the parameter that the kernel reads, not from the order of compilation::

    layer1.0.conv1.weight/conv+relu@resnet.py:31

A kernel that reads no parameter is named after what it computes and where: ``softmax@attention.py:12``; the second kernel of
one name gets ``#1``, and so on.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from effc.compiler.ir.program import Call, Pointer, Program
from effc.compiler.ir.spec import ITEM_SIZE, KernelSpec


@dataclass(frozen=True)
class Site:
    """``params``: names of the weights in the largest operand that is weights (several where contractions are merged or chained).
    ``symbols``: the value of each of the kernel's symbols for the sizes seen at compile time; ``flops`` (of contractions) and ``bytes``
    (all operands) are for those sizes too.
    """

    name: str
    op: str
    location: str
    params: tuple[str, ...]
    spec: KernelSpec
    symbols: tuple[int, ...]
    flops: int
    bytes: int

    @property
    def param(self) -> str:
        """The first of ``params``, or ``""``."""
        return next(iter(self.params), "")

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "op": self.op,
            "location": self.location,
            "params": list(self.params),
            "spec": self.spec.to_json(),
            "symbols": list(self.symbols),
            "flops": self.flops,
            "bytes": self.bytes,
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Site:
        """The site that ``to_json`` wrote; KeyError, TypeError or ValueError where ``data`` is not one."""
        return Site(
            name=data["name"],
            op=data["op"],
            location=data["location"],
            params=tuple(data["params"]),
            spec=KernelSpec.from_json(data["spec"]),
            symbols=tuple(data["symbols"]),
            flops=data["flops"],
            bytes=data["bytes"],
        )

    def digest(self) -> str:
        """A hash of the content."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:32]


def sites_of(programs: Iterable[tuple[Program, Mapping[str, int]]]) -> list[Site]:
    """The sites of a model's programs, each with the values that its symbols had at compile time."""
    taken: Counter[str] = Counter()
    found: list[Site] = []
    for program, values in programs:
        for call in program.calls:
            site = _site(program, call, values)
            count = taken[site.name]
            taken[site.name] += 1
            found.append(site if not count else _renamed(site, f"{site.name}#{count}"))
    return found


def _site(program: Program, call: Call, values: Mapping[str, int]) -> Site:
    spec = program.kernels[call.kernel]
    symbols = tuple(s.evaluate(values) for s in call.symbols)
    known = dict(zip(spec.symbols, symbols, strict=True))
    sizes = [o.size.evaluate(known) * ITEM_SIZE[o.dtype] for o in spec.operands]
    read = [(size, _params(program, p)) for size, p in zip(sizes, call.pointers, strict=True)]
    params = max(((size, names) for size, names in read if names), default=(0, ()))[1]
    if spec.stages:  # of each stage its factor
        factors = [names for o, (_, names) in zip(spec.operands, read, strict=True) if o.role == "packed"]
        params = tuple(dict.fromkeys(name for names in factors for name in names))
    place = f"{call.name or spec.template}@{call.location}" if call.location else call.name or spec.template
    name = f"{params[0]}/{place}" if params else place
    return Site(name, call.name, call.location, params, spec, symbols, call.flops.evaluate(values), sum(sizes))


def _params(program: Program, pointer: Pointer) -> tuple[str, ...]:
    """The parameters behind a pointer, through its derivation: of what is joined one for each part, of a value prepared the first."""
    if pointer.base == "input":
        name = program.inputs[pointer.index].param
        return (name,) if name else ()
    if pointer.base != "derived":
        return ()
    found = [_origin(program, *source) for source in program.origins(program.derived[pointer.index].source)]
    return tuple(dict.fromkeys(name for name in found if name))


def _origin(program: Program, kind: str, index: int) -> str:
    """The parameter that an input is, or the first that a prepared value is made of."""
    if kind == "input":
        return program.inputs[index].param
    prepare = program.prepare
    assert prepare is not None, "a prepared source needs the program that prepares it"
    makers = [c for c in prepare.calls if any(p.base == "output" and p.index == index for p in c.pointers)]
    read = [prepare.inputs[p.index].param for c in makers for p in c.pointers if p.base == "input"]
    return next(iter(read), "")


def _renamed(site: Site, name: str) -> Site:
    return Site(name, site.op, site.location, site.params, site.spec, site.symbols, site.flops, site.bytes)
