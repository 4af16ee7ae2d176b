"""Chains: two contractions of the same rows become one kernel, where only the second reads what the first stores.

Before → after, of two low-rank factors or pointwise convolutions::

    k0: contraction, d0: 3136, d1: 24, reduction d2: 64      store v3 to 2[24*d0 + d1]
    k1: contraction, d0: 3136, d1: 64, reduction d2: 24      v0 = load 0[24*d0 + d2]

    k0: chain, d0: 3136        the same two as stages; what is between them is scratch memory, a block of rows for each thread

Whether that pays is counted by `codegen.cpu.chain.choice`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from effc.compiler.codegen.cpu.chain.choice import Chained, chained, pays
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.expr import const
from effc.compiler.ir.spec import Instr, KernelSpec, Operand
from effc.compiler.pipeline.kernels import Kernel, Site
from effc.compiler.pipeline.placement import Base


def chain_kernels(kernels: Sequence[Kernel], is_dense: Callable[[Site], bool], target: Target) -> list[Kernel]:
    """``kernels`` in their order, each pair that is counted faster together in the place of its second.

    ``is_dense``: whether what a site points at depends on parameters alone, and no zeros are known in it.
    """
    users: dict[Base, list[int]] = {}
    for i, kernel in enumerate(kernels):
        for base in dict.fromkeys(s.base for s in kernel.sites):
            users.setdefault(base, []).append(i)
    found: list[Kernel | None] = list(kernels)
    for i, first in enumerate(kernels):
        between = _stored(first)
        if found[i] is not first or between is None or len(users[between.base]) != 2:
            continue
        last = users[between.base][1]
        second, meanwhile = kernels[last], [k for k in found[i + 1 : last] if k is not None]
        if found[last] is second and _may_follow(first, second, meanwhile):
            made = _chain(first, second, between, is_dense, target)
            if made is not None:
                found[i], found[last] = None, made
    return [kernel for kernel in found if kernel is not None]


def _may_follow(first: Kernel, second: Kernel, meanwhile: Sequence[Kernel]) -> bool:
    """Whether ``first`` may run block by block with ``second``, where nobody but ``second`` reads what it stores: nothing writes what it
    reads, neither in the meantime nor in ``second``.
    """
    if second.spec.template != "contraction" or second.spec.symbols:
        return False
    touched = {s.base for s in first.sites}
    return not any(_written(kernel) & touched for kernel in (*meanwhile, second))


def _stored(kernel: Kernel) -> Site | None:
    """The one buffer that a contraction of known sizes stores into."""
    stores = [instr["operand"] for instr in kernel.spec.body if instr.op == "store"]
    if kernel.spec.template != "contraction" or kernel.spec.symbols or len(stores) != 1:
        return None
    site = kernel.sites[stores[0]]
    return site if site.base.kind == "buffer" else None


def _written(kernel: Kernel) -> set[Base]:
    return {s.base for s, o in zip(kernel.sites, kernel.spec.operands, strict=True) if o.role in ("write", "readwrite")}


def _chain(
    first: Kernel, second: Kernel, between: Site, is_dense: Callable[[Site], bool], target: Target
) -> Kernel | None:
    """The kernel of both, where there is one and it pays."""
    sites: dict[Site, Operand] = {}
    for kernel in (first, second):
        for site, operand in zip(kernel.sites, kernel.spec.operands, strict=True):
            if site != between:
                known = sites.get(site, operand)
                sites[site] = max(known, operand, key=lambda o: o.size.constant or 0)
    operands = (*sites.values(), Operand(between.dtype, "scratch", const(0)))
    number = {site: i for i, site in enumerate((*sites, between))}
    stages = tuple(replace(k.spec, operands=operands, body=_moved(k, number)) for k in (first, second))
    spec = KernelSpec("chain", (), operands, (), stages=stages)
    found = chained(spec, [i for i, site in enumerate(sites) if is_dense(site)], target)
    if not isinstance(found, Chained) or not pays(found, target):
        return None
    return Kernel(spec, tuple(sites), (), f"{first.name}+{second.name}", first.location)


def _moved(kernel: Kernel, number: dict[Site, int]) -> tuple[Instr, ...]:
    """A kernel's body over the operands of the chain."""

    def attribute(name: str, value: object) -> tuple[str, object]:
        return name, number[kernel.sites[value]] if name == "operand" and isinstance(value, int) else value

    return tuple(replace(i, attributes=tuple(attribute(*a) for a in i.attributes)) for i in kernel.spec.body)
