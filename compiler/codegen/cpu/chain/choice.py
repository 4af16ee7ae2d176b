"""Which chains run as one kernel: where the bytes that it saves are more than those that it reads again.

Apart, two contractions write the intermediate and read it. Together, a block of it stays in L1; but every thread then walks the factors of
both for its own rows, where kernels whose panels are outside share them out (`contraction.order`). In bytes of each of two threads::

    saved = 2 * I / 2     of an intermediate of I bytes whose half leaves L2, written and read
    again = F / 2         of each factor of F bytes that a kernel of its own would share out

A cycle brings `FAR_BYTES` of either, and a parallel region less saves `REGION` cycles. So few rows stay with two kernels, and so do factors
that L2 does not hold together: each tile of rows would fetch them anew.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from effc.compiler.codegen.cpu.chain.plan import Plan, links_of, nests_of
from effc.compiler.codegen.cpu.contraction.order import L2_SHARE
from effc.compiler.codegen.cpu.contraction.packing import Packing, packing
from effc.compiler.codegen.cpu.contraction.roles import Nest
from effc.compiler.codegen.cpu.contraction.schedule import FAR_BYTES, estimate, tiles, variants
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.expr import const
from effc.compiler.ir.spec import ITEM_SIZE, Dim, KernelSpec, Schedule

#: Cycles of an empty parallel region on two warm threads, 0.95 us. (A single row needs all threads for each product: one region with a
#: barrier between them took 1.35 us, two regions 1.9.)
REGION = 2000
#: Row tiles at least: fewer are not shared out evenly.
LEAST_TILES = 16


@dataclass(frozen=True)
class Chained:
    """``spec``: the chain with packed factors, schedules and scratch memory; ``packings``: of its stages; ``shared_out``: whether threads
    would share out the factor of each stage in a kernel of its own.
    """

    spec: KernelSpec
    packings: tuple[Packing, ...]
    shared_out: tuple[bool, ...]

    def derivations(self) -> list[tuple[int, str, dict[str, Any]]]:
        """``(operand, function, attributes)`` of all packed operands."""
        return [derivation for packed in self.packings for derivation in packed.derivations()]


def chained(spec: KernelSpec, constants: Collection[int], target: Target) -> Chained | str:
    """The chain ``spec``, of which ``constants`` are the operands that may be packed, or the reason why there is no kernel for it. Its dim
    is found, and the size of its scratch memory.
    """
    packed: list[Packing] = []
    for stage in spec.stages:
        own = packing(stage, constants, target)
        if isinstance(own, str):
            return own
        if own.function != "pack_panels":
            return f"a factor in the form that {own.function} makes"
        packed.append(own)
    nests = nests_of(replace(spec, stages=tuple(p.spec for p in packed)), target)
    if isinstance(nests, str):
        return nests
    links = links_of(nests)
    if isinstance(links, str):
        return links
    schedules = _schedules(nests, target)
    if schedules is None:
        return "no height of tiles serves all stages"
    wanted = {p.spec.key(): s for p, s in zip(packed, schedules, strict=True)}
    again = [packing(stage, constants, target, wanted) for stage in spec.stages]
    found = tuple(p for p in again if isinstance(p, Packing))
    return Chained(_joined(spec, found, target), found, tuple(p.spec.schedule["order"] == "panels" for p in packed))


def pays(found: Chained, target: Target) -> bool:
    """Whether one kernel is counted to be faster than one for each stage; rows whose number is known only at run time may be few."""
    plan, rows = Plan.of(found.spec, target), found.spec.dims[0].size.constant
    assert isinstance(plan, Plan), "checked by chained"
    factors = [_bytes(found.spec, p.operand) for p in found.packings]
    if rows is None or rows < LEAST_TILES * plan.height or sum(factors) > L2_SHARE:
        return False
    parts = [rows * link.stride * ITEM_SIZE[found.spec.operands[link.operand].dtype] // 2 for link in plan.links]
    saved = sum(2 * part for part in parts if part > L2_SHARE)
    again = sum(f // 2 for f, shared in zip(factors, found.shared_out, strict=True) if shared)
    return saved + FAR_BYTES * REGION > again


def _bytes(spec: KernelSpec, operand: int) -> int:
    size = spec.operands[operand].size.constant
    assert size is not None, "a packed factor has known sizes"
    return size * ITEM_SIZE[spec.operands[operand].dtype]


def _schedules(nests: Sequence[Nest], target: Target) -> tuple[Schedule, ...] | None:
    """Of the stages, with one height of tiles for all: those of the lowest count. None where no height serves all."""
    counts = [_by_height(nest, target) for nest in nests]
    heights = set.intersection(*(set(c) for c in counts))
    if not heights:
        return None
    height = min(heights, key=lambda mr: (sum(c[mr][0] for c in counts), -mr))
    chosen = [variants(nest, target, height, c[height][1]) for nest, c in zip(nests, counts, strict=True)]
    return tuple(next(s for s in found if s["order"] == "rows") for found in chosen)


def _by_height(nest: Nest, target: Target) -> dict[int, tuple[float, int]]:
    """The cycles of the best tile of each height, and its vectors."""
    steps = nest.size(nest.reduction[0]).constant or 1
    found: dict[int, tuple[float, int]] = {}
    for mr, vectors in tiles(nest, target):
        count = (steps * estimate(nest, target, mr, vectors), vectors)
        found[mr] = min(found.get(mr, count), count)
    return found


def _joined(spec: KernelSpec, packings: Sequence[Packing], target: Target) -> KernelSpec:
    """``spec`` with the packed operands and the schedules of its stages, and scratch memory."""
    operands = list(spec.operands)
    for packed in packings:
        operands[packed.operand] = packed.spec.operands[packed.operand]
    stages = tuple(replace(p.spec, operands=tuple(operands)) for p in packings)
    plan = Plan.of(replace(spec, operands=tuple(operands), stages=stages), target)
    assert isinstance(plan, Plan), "checked by chained"
    for link in plan.links:
        operands[link.operand] = replace(operands[link.operand], size=const(plan.scratch_elements(link)))
    stages = tuple(replace(stage, operands=tuple(operands)) for stage in stages)
    nest = plan.nests[0]
    return replace(spec, dims=(Dim(nest.size(nest.row)),), operands=tuple(operands), stages=stages)
