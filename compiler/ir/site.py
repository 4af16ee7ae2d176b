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
    """``param``: name of the weight that the kernel reads (the largest of several), or ``""``. ``symbols``: the value of each
    of the kernel's symbols for the sizes seen at compile time; ``flops`` (of contractions) and ``bytes`` (all operands) are
    for those sizes too.
    """

    name: str
    op: str
    location: str
    param: str
    spec: KernelSpec
    symbols: tuple[int, ...]
    flops: int
    bytes: int

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "op": self.op,
            "location": self.location,
            "param": self.param,
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
            param=data["param"],
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
    params = [(size, _param(program, p)) for size, p in zip(sizes, call.pointers, strict=True)]
    param = max(((size, name) for size, name in params if name), default=(0, ""))[1]
    place = f"{call.name or spec.template}@{call.location}" if call.location else call.name or spec.template
    name = f"{param}/{place}" if param else place
    return Site(name, call.name, call.location, param, spec, symbols, call.flops.evaluate(values), sum(sizes))


def _param(program: Program, pointer: Pointer) -> str:
    """The parameter behind a pointer, through its derivation; of a value prepared or joined from several, the first."""
    if pointer.base == "input":
        return program.inputs[pointer.index].param
    if pointer.base != "derived":
        return ""
    kind, index = program.origins(program.derived[pointer.index].source)[0]
    if kind == "input":
        return program.inputs[index].param
    prepare = program.prepare
    assert prepare is not None, "a prepared source needs the program that prepares it"
    makers = [c for c in prepare.calls if any(p.base == "output" and p.index == index for p in c.pointers)]
    read = [prepare.inputs[p.index].param for c in makers for p in c.pointers if p.base == "input"]
    return next(iter(read), "")


def _renamed(site: Site, name: str) -> Site:
    return Site(name, site.op, site.location, site.param, site.spec, site.symbols, site.flops, site.bytes)
