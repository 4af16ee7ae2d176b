"""What a block is counted to take, in cycles of one of two threads, and what its stages are counted to take as kernels of their own.

A kernel takes as long as its arithmetic or its memory, whichever is longer, and a quarter of the other (`contraction.schedule`)::

    apart = sum over stages of (max(compute, memory) + min(compute, memory) / 4 + REGION)
    fused = max(compute, memory) + min(compute, memory) / 4 + REGION + CALL * calls + 2 * moved / NEAR_BYTES

``compute``: of register tiles by `contraction.schedule.estimate`, of loops by `loops.plan.vector_cost`; fused, with the lines that a thread
computes although another does too. ``memory``: each thread's half of what the stages read and write, at `FAR_BYTES` a cycle where that half
leaves L2, else at `NEAR_BYTES`. Apart, an intermediate is written and read so; fused it stays in L2, or in L1 where all of a tile's do.
``moved``: lines that a tile keeps, which are read and written before it. A factor comes from afar once for each thread, or half of it
where threads share out its panels; fused, again for each tile if L2 does not hold all of a block's factors beside its intermediates. What
every slice of channels reads comes once for each.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from math import prod

from effc.compiler.codegen.cpu.block.needs import Reading
from effc.compiler.codegen.cpu.block.plan import Plan
from effc.compiler.codegen.cpu.block.stages import Stage
from effc.compiler.codegen.cpu.contraction.order import order
from effc.compiler.codegen.cpu.contraction.schedule import FAR_BYTES, estimate, tiles
from effc.compiler.codegen.cpu.loops.plan import vector_cost
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.spec import ITEM_SIZE

#: Threads that are counted.
THREADS = 2
#: Bytes a cycle from L2.
NEAR_BYTES = 32
#: Bytes of L2 that a block's factors and intermediates may fill, of 1 MiB, and of L1 that intermediates may.
L2_BYTES, L1_BYTES = 832 * 1024, 24 * 1024
#: Cycles of an empty parallel region on two warm threads, 0.95 us, and of a stage's call for a tile.
REGION, CALL = 2000, 150
#: Bytes of a thread's half of what one kernel stores that L2 still holds when the next one reads it.
LEFT = 384 * 1024


@dataclass(frozen=True)
class Cost:
    """Of one of `THREADS` threads. ``compute``: cycles, of which ``halo`` are of lines that another thread computes too; ``near``, ``far``:
    bytes from L2, and from beyond; ``moved``: bytes of lines that are kept; ``calls``: of stages. ``apart``: cycles of the stages as
    kernels of their own.
    """

    compute: float
    halo: float
    near: float
    far: float
    moved: float
    calls: int
    apart: float

    @property
    def fused(self) -> float:
        """Cycles of the block."""
        return _together(self.compute, self.near, self.far) + 2 * self.moved / NEAR_BYTES + CALL * self.calls

    @property
    def saved(self) -> float:
        """Cycles that the block saves, less than 0 where it takes more."""
        return self.apart - self.fused


def _together(compute: float, near: float, far: float) -> float:
    memory = near / NEAR_BYTES + far / FAR_BYTES
    return max(compute, memory) + min(compute, memory) / 4 + REGION


@dataclass(frozen=True)
class Counter:
    """Counts the tiles of one block. ``factors``: bytes of each stage's packed factor, 0 of loops."""

    reading: Reading
    factors: tuple[int, ...]
    target: Target

    def of(self, plan: Plan) -> Cost:
        lines = plan.units
        mine = -(-lines.count // THREADS)
        # Of the lines that both of two threads need where their shares meet within an image, each computes half that are not its own.
        meet = 1 if lines.images % THREADS else 0
        halo = sum(
            meet * -(-need.kept // 2) / stage.lines.count * cycles
            for need, stage, cycles in zip(plan.by_stage, plan.stages, self.cycles, strict=True)
        )
        compute = sum(self.cycles) * mine / lines.count + halo
        turns = -(-mine // plan.tile)
        held = plan.scratch_bytes()
        moved = sum(turns * need.kept * size for need, size in zip(plan.by_between, self._line_bytes, strict=True))
        hidden = sum(size for b, size in zip(plan.between, self.between, strict=True) if not b.shown)
        near = 2 * hidden / THREADS if held > L1_BYTES else 0.0
        weights = sum(self.factors) / plan.slices
        far = weights * (plan.slices if weights + held <= L2_BYTES else turns)
        for operand, size in self._outside.items():
            times = plan.slices if operand in self._again else 1
            near, far = near + times * _near(size), far + times * _far(size)
        return Cost(compute, halo, near, far, moved, turns * len(plan.stages), self.apart)

    @cached_property
    def apart(self) -> float:
        """Cycles of the stages, each a kernel of its own."""
        reading, total = self.reading, 0.0
        size_of = {b.operand: size for b, size in zip(reading.between, self.between, strict=True)}
        for stage, cycles, factor in zip(reading.stages, self.cycles, self.factors, strict=True):
            sizes = [size_of.get(o, 0) or self._outside.get(o, 0) for o in {*stage.touched("load", "store")}]
            near, far = sum(map(_near, sizes)), factor / _sharers(stage, self.target) + sum(map(_far, sizes))
            total += _together(cycles / THREADS, near, far)
        return total

    @cached_property
    def cycles(self) -> list[float]:
        """Of all lines of each stage, on one thread."""
        return [stage_cycles(stage, self.target) for stage in self.reading.stages]

    @cached_property
    def between(self) -> list[int]:
        """Bytes of each intermediate."""
        return [
            b.lines.count * size for b, size in zip(self.reading.between, self._line_bytes, strict=True)
        ]  # fmt: skip

    @cached_property
    def _again(self) -> set[int]:
        """The operands that every slice of channels reads all of."""
        return {
            stage.operands[instr["operand"]]
            for stage in self.reading.stages
            for instr in stage.body.body
            if instr.op == "load" and "d0" not in instr["address"].variables()
        }

    @cached_property
    def _line_bytes(self) -> list[int]:
        operands = self.reading.operands
        return [b.stride * ITEM_SIZE[operands[b.operand].dtype] for b in self.reading.between]

    @cached_property
    def _outside(self) -> dict[int, int]:
        return {
            i: (o.size.constant or 0) * ITEM_SIZE[o.dtype]
            for i, o in enumerate(self.reading.operands)
            if o.role in ("read", "write", "readwrite")
        }


def stage_cycles(stage: Stage, target: Target) -> float:
    """Of all lines of a stage, on one thread, with the fastest register tile."""
    return _cycles(replace(stage, operands=()), target)


@lru_cache(maxsize=1024)
def _cycles(stage: Stage, target: Target) -> float:
    if stage.nest is None:
        assert stage.plan is not None, "a stage is a product or loops"
        points = prod(d.size.constant or 1 for d in stage.plan.spec.dims)
        return vector_cost(stage.plan) * points / stage.plan.lanes
    nest = stage.nest
    points = prod(nest.size(k).constant or 1 for k in nest.reduction)
    others = prod(nest.size(i).constant or 1 for i in nest.outer)
    return points * others * min(estimate(nest, target, *tile) for tile in tiles(nest, target))


def _sharers(stage: Stage, target: Target) -> int:
    """Threads that share out the panels of a stage's factor in a kernel of its own."""
    return THREADS if stage.nest is not None and order(stage.nest, 4 * target.lanes(4)) == "panels" else 1


def _half(size: int) -> float:
    return size / THREADS


def _near(size: int) -> float:
    return _half(size) if _half(size) <= LEFT else 0.0


def _far(size: int) -> float:
    return _half(size) if _half(size) > LEFT else 0.0
