"""Blocks: kernels one behind the other become one, where what lies between them is read by none but these.

Before → after, of an inverted residual::

    k0: contraction (1x1)         x → buffer 0
    k1: contraction (depthwise)   buffer 0 → buffer 1
    k2: contraction (1x1)         buffer 1, x → y

    k0: block                     the same three as stages, x → y; what is between them is scratch memory, some lines for each thread

`codegen.cpu.block` says which kernels can be stages and counts what the block saves. Of all runs of parts of a region (`regions`),
those that save the most are taken first; so a long run becomes one block, several, or none. A run may take a kernel along that reduces
its result, which others read too: of squeeze-excitation the depthwise convolution and the pool.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from effc.compiler.codegen.cpu.block.choice import Block, block_of
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.expr import const
from effc.compiler.ir.spec import CONVOLUTION, Instr, KernelSpec, Operand
from effc.compiler.pipeline.dataflow import Dataflow
from effc.compiler.pipeline.placed import Kernel, Site
from effc.compiler.pipeline.placement import Base
from effc.compiler.pipeline.regions import Region, find_regions

#: Stages of a block at most.
MOST_STAGES = 8
#: Lines of a result, or tiles of rows, at least: fewer are not shared out evenly.
LEAST_LINES = 14
#: The share of a block's time that it must save beside: where it holds lines for later tiles, and where it does not. The count errs by up
#: to a tenth, so that some lose nevertheless; wider margins leave apart more that gain (docs/block_fusion.md). By the margin, too, a block
#: takes in a further kernel only where that is worth it.
LINES_MARGIN, MARGIN = 0.01, 0.004


@dataclass(frozen=True)
class _Found:
    """A block of the kernels at ``members``, by which ``saved`` cycles are saved."""

    members: tuple[int, ...]
    kernel: Kernel
    saved: float


def fuse_blocks(
    kernels: Sequence[Kernel], constants: Collection[Base], is_dense: Callable[[Site], bool], target: Target
) -> list[Kernel]:
    """``kernels`` in their order, each run that is counted faster together in the place of its last.

    ``constants``: bases that no call changes. ``is_dense``: whether what a site points at depends on parameters alone, and no zeros are
    known in it.
    """
    finder = _Finder(kernels, constants, is_dense, target)
    found: list[Kernel | None] = list(kernels)
    for block in sorted(finder.blocks(), key=lambda f: (-f.saved, f.members)):
        if all(found[i] is kernels[i] for i in block.members):
            for member in block.members:
                found[member] = None
            found[block.members[-1]] = block.kernel
    return [kernel for kernel in found if kernel is not None]


class _Finder:
    def __init__(
        self,
        kernels: Sequence[Kernel],
        constants: Collection[Base],
        is_dense: Callable[[Site], bool],
        target: Target,
    ) -> None:
        self.kernels, self.is_dense, self.target = kernels, is_dense, target
        self.flow = Dataflow(kernels, constants)

    def blocks(self) -> Iterator[_Found]:
        """All blocks that save something."""
        tops = find_regions(self.flow)
        parts: list[Sequence[Region]] = [region.parts for top in tops for region in top.walk()]
        # Also across the ends of regions: what scales by a gate belongs to the region of the gate, what follows does not.
        parts += [[region for region in top.walk() if not region.parts] for top in tops]
        for members in dict.fromkeys(self._computing(m) for each in parts for m in _runs(each)):
            if len(members) > 1 and self.flow.shared(members) is not None:
                yield from self._block(members)
            yield from self._with_pool(members)

    def _computing(self, members: tuple[int, ...]) -> tuple[int, ...]:
        """``members`` without those that fill borders around what the others store."""
        return tuple(i for i in members if not self.flow.fills(i))

    def _with_pool(self, members: tuple[int, ...]) -> Iterator[_Found]:
        """The run with a kernel that reduces its result, which others read too: the first half of squeeze-excitation."""
        shared = self.flow.shared(members)
        if shared is None or len(members) == MOST_STAGES:
            return
        pools = (i for i in self.flow.readers(shared.exit, members[-1]) if _reduces(self.kernels[i].spec))
        for pool in pools:
            if self.flow.shared((*members, pool), {shared.exit}) is not None:
                yield from self._block((*members, pool), shared.exit)

    def _block(self, members: tuple[int, ...], shown: Base | None = None) -> Iterator[_Found]:
        """The kernel of a run, where there is one and it pays. ``shown``: what lies between its kernels, and others read too."""
        made = joined([self.kernels[i] for i in members], shown)
        if made is None:
            return
        constants = tuple(i for i, site in enumerate(made.sites) if self.is_dense(site))
        found = _known(made.spec, constants, self.target)
        gain = 0.0 if isinstance(found, str) else saved(found)
        if gain > 0:
            yield _Found(members, made, gain)


@lru_cache(maxsize=4096)  # a planner lowers a model again and again, and most of it is as it was
def _known(spec: KernelSpec, constants: tuple[int, ...], target: Target) -> Block | str:
    return block_of(spec, constants, target)


def _runs(parts: Sequence[Region]) -> Iterator[tuple[int, ...]]:
    """The kernels of ``parts`` that follow each other, not too many."""
    for first in range(len(parts)):
        members: tuple[int, ...] = ()
        for part in parts[first:]:
            members = (*members, *part.kernels)
            if len(members) > MOST_STAGES:
                break
            yield members


def saved(found: Block) -> float:
    """Cycles, beyond the margin, by which a block is counted to be faster than its stages, each a kernel of its own; 0 where it is not."""
    cost = found.cost
    margin = LINES_MARGIN if cost.moved else MARGIN
    return max(cost.saved - margin * cost.fused, 0.0) if found.plan.units.count >= LEAST_LINES else 0.0


def _reduces(spec: KernelSpec) -> bool:
    return spec.template == "loops" and any(i.op == "reduce" for i in spec.body)


def joined(kernels: Sequence[Kernel], shown: Base | None = None) -> Kernel | None:
    """The kernels as stages of one, whose intermediates are scratch memory, but for one that is ``shown``; None where one of these is seen
    as several things.
    """
    stored = {base for kernel in kernels[:-1] for base in _written(kernel) if base != shown}
    sites: dict[Site, Operand] = {}
    between: dict[Site, Operand] = {}
    for kernel in kernels:
        for site, operand in zip(kernel.sites, kernel.spec.operands, strict=True):
            if site.base in stored:
                between[site] = Operand(site.dtype, "scratch", const(0))
            else:
                known = sites.get(site, operand)
                sites[site] = max(known, operand, key=lambda o: (o.role == "write", o.size.constant or 0))
    if len(between) > len(stored) or sum(site.base == shown for site in sites) > 1:
        return None
    number = {site: i for i, site in enumerate((*sites, *between))}
    operands = (*sites.values(), *between.values())
    stages = tuple(
        replace(k.spec, operands=operands, body=_moved(k, number), attributes=_kept(k.spec)) for k in kernels
    )
    spec = KernelSpec("block", (), operands, (), stages=stages)
    return Kernel(spec, tuple(sites), (), "+".join(k.name for k in kernels), kernels[-1].location)


def _kept(spec: KernelSpec) -> tuple[tuple[str, Any], ...]:
    """The attributes that a stage has."""
    return tuple((name, value) for name, value in spec.attributes if name == CONVOLUTION)


def _written(kernel: Kernel) -> set[Base]:
    return {s.base for s, o in zip(kernel.sites, kernel.spec.operands, strict=True) if o.role in ("write", "readwrite")}


def _moved(kernel: Kernel, number: dict[Site, int]) -> tuple[Instr, ...]:
    """A kernel's body over the operands of the block."""

    def attribute(name: str, value: object) -> tuple[str, object]:
        return name, number[kernel.sites[value]] if name == "operand" and isinstance(value, int) else value

    return tuple(
        replace(i, attributes=tuple(attribute(*a) for a in i.attributes)) if i.op in ("load", "store") else i
        for i in kernel.spec.body
    )
