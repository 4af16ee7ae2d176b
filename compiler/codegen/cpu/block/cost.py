"""What a block is counted to take, in cycles of one of two threads, and what its stages are counted to take as kernels of their own.

A stage takes as long as its arithmetic or its caches, whichever is longer, and a little of the other; and what memory takes::

    stage = max(compute, caches) + min(compute, caches) / 8 + memory
    apart = sum over stages of (stage + REGION)
    fused = sum over stages of stage + REGION + CALL * calls + 2 * moved / NEAR_BYTES

so of a block too: its stages take turns, and one's arithmetic does not hide another's memory. ``compute``: of register tiles by
`contraction.schedule.estimates`, with what follows their sums; of loops by `loops.plan.instruction_cost`; fused, with the lines that a
thread computes although another does too. ``caches``: each thread's half of what the stage reads and writes, at `FAR_BYTES` a cycle;
``memory``: at `MEMORY_BYTES` where that half leaves the last cache, and then what is written moves twice, for a line is read before it is
written to. A last stage that adds up slices (`sums`) stores and loads its result once more for each slice but one.
Apart, an intermediate is written and read so; fused it stays in L2, at `NEAR_BYTES` a cycle, or in L1 where all of a tile's do; one that
is a result too is written so, and read again from where a tile of it fits. ``moved``: lines that a tile keeps, which are read and written
before it. A factor comes from afar once for each thread, or half of it where threads share out its panels; fused, again for each tile if
L2 does not hold all of a block's factors beside its intermediates. What every slice of channels reads comes once for each.

The figures were fitted to 58 blocks, and to the kernels that they are made of, on two cores of Zen 4 (docs/block_fusion.md). A target
does not describe its caches, and code is chosen alike wherever it is compiled: those of memory and caches hold for these cores, and are
taken for all CPUs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from math import prod

from effc.compiler.codegen.cpu.block.needs import Reading
from effc.compiler.codegen.cpu.block.plan import Plan
from effc.compiler.codegen.cpu.block.stages import Stage
from effc.compiler.codegen.cpu.contraction.order import order
from effc.compiler.codegen.cpu.contraction.roles import Nest
from effc.compiler.codegen.cpu.contraction.schedule import estimates, steps_of
from effc.compiler.codegen.cpu.loops.costs import cycles
from effc.compiler.codegen.cpu.loops.plan import Plan as LoopsPlan
from effc.compiler.codegen.cpu.loops.plan import instruction_cost
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.spec import ITEM_SIZE

#: Threads that are counted.
THREADS = 2
#: Cycles that a core which starts one multiply-add of 512 bits a cycle (`Target.halves_vectors`) takes for one of `estimate`'s, where two
#: start: of products, and of those whose columns have rows of their own, which `estimate` counts by their loads.
FLOW, FLOW_WISE = 1.8, 1.2
#: How much of the shorter of arithmetic and caches does not run beside the longer.
BESIDE = 1 / 8
#: Bytes a cycle from the thread's own L2; from there or from L3 where another kernel wrote them; and from memory.
NEAR_BYTES, FAR_BYTES, MEMORY_BYTES = 32, 12, 5
#: Bytes of L2 that a block's factors and intermediates may fill, of 1 MiB, and of L1 that intermediates may.
L2_BYTES, L1_BYTES = 832 * 1024, 24 * 1024
#: Cycles of an empty parallel region on two warm threads, 0.95 us, and of a stage's call for a tile.
REGION, CALL = 2000, 100
#: Bytes of a thread's half of what one kernel stores that the last cache still holds when the next one reads it.
LEFT = 4 * 1024 * 1024


@dataclass(frozen=True)
class Work:
    """Of a stage on one of `THREADS` threads: ``compute`` in cycles; bytes from and to L2 (``near``), what is beyond, and memory."""

    compute: float
    near: float
    far: float
    memory: float

    @property
    def cycles(self) -> float:
        moving = self.near / NEAR_BYTES + self.far / FAR_BYTES
        return max(self.compute, moving) + BESIDE * min(self.compute, moving) + self.memory / MEMORY_BYTES


@dataclass(frozen=True)
class Cost:
    """``stages``: of a block; ``moved``: bytes of lines that are kept; ``calls``: of stages. ``apart``: cycles of the stages as kernels of
    their own.
    """

    stages: tuple[Work, ...]
    moved: float
    calls: int
    apart: float

    @property
    def fused(self) -> float:
        """Cycles of the block."""
        return sum(w.cycles for w in self.stages) + REGION + 2 * self.moved / NEAR_BYTES + CALL * self.calls

    @property
    def saved(self) -> float:
        """Cycles that the block saves, less than 0 where it takes more."""
        return self.apart - self.fused


@dataclass(frozen=True)
class _Touch:
    """A stage ``loads`` an operand, or stores it; ``far``, ``memory``: as of `Work`, where it lies outside of the block."""

    operand: int
    loads: bool
    far: float
    memory: float


@dataclass(frozen=True)
class Counter:
    """Counts the tiles of one block. ``factors``: bytes of each stage's packed factor, 0 of loops."""

    reading: Reading
    factors: tuple[int, ...]
    target: Target

    def of(self, plan: Plan) -> Cost:
        mine = -(-plan.units.count // THREADS)
        turns = -(-mine // plan.tile) * plan.added
        moved = sum(turns * need.kept * size for need, size in zip(plan.by_between, self._line_bytes, strict=True))
        return Cost(self._stages(plan, mine, turns), moved, turns * len(plan.stages), self.apart)

    def _stages(self, plan: Plan, mine: int, turns: int) -> tuple[Work, ...]:
        """Of each stage, where a thread has ``mine`` of the units and takes ``turns`` tiles."""
        lines = plan.units
        # Of the lines that both of two threads need where their shares meet within an image, each computes half that are not its own.
        meet = plan.added if lines.images % THREADS else 0
        # Kernels of their own share out tiles of rows as well, but of lines finer pieces.
        share = 1 / THREADS if plan.tiled else mine / lines.count
        held = plan.scratch_bytes()
        again = plan.slices if sum(self.factors) / plan.slices + held <= L2_BYTES else turns
        found = []
        for stage, need, computing, factor, touches in zip(
            plan.stages, plan.by_stage, self.cycles, self.factors, self._touches, strict=True
        ):
            halo = meet * -(-need.kept // 2) / stage.lines.count * computing
            near, far, memory = 0.0, factor / plan.slices * again, 0.0
            for touch in touches:
                inside = self._inside(plan, touch, held)
                if inside is not None:
                    near += inside
                    continue
                times = plan.slices if touch.loads and touch.operand in self._again else 1
                if plan.added > 1 and stage is plan.stages[-1]:
                    # The result holds the sums so far: each slice but the last stores them, and the next one loads them.
                    times = 1 if touch.loads else 2 * plan.added - 1
                far += times * touch.far
                # A store to memory counts as two moves already, of which the load of the sums so far is one.
                memory += (times if touch.loads else plan.added) * touch.memory
            found.append(Work(share * computing + halo, near, far, memory))
        return tuple(found)

    def _inside(self, plan: Plan, touch: _Touch, held: int) -> float | None:
        """Bytes of an operand that a thread takes from its L2, or writes there; None where they come from beyond, or leave it."""
        number = self._numbers.get(touch.operand)
        if number is None:
            return None
        working = held
        if plan.between[number].shown:
            working += plan.tile * plan.height * self._line_bytes[number]
            if not touch.loads or working > L2_BYTES:
                return None
        return self.between[number] / THREADS if working > L1_BYTES else 0.0

    @cached_property
    def apart(self) -> float:
        """Cycles of the stages, each a kernel of its own."""
        total = 0.0
        for stage, computing, factor, touches in zip(
            self.reading.stages, self.cycles, self.factors, self._touches, strict=True
        ):
            far = factor / _sharers(stage, self.target) + sum(t.far for t in touches)
            total += Work(computing / THREADS, 0.0, far, sum(t.memory for t in touches)).cycles + REGION
        return total

    @cached_property
    def _touches(self) -> list[list[_Touch]]:
        """Of each stage."""
        sizes = {**self._outside, **{operand: self.between[i] for operand, i in self._numbers.items()}}
        return [
            [
                _Touch(operand, op == "load", *_beyond(sizes.get(operand, 0), 1 if op == "load" else 2))
                for op in ("load", "store")
                for operand in {*stage.touched(op)}
            ]
            for stage in self.reading.stages
        ]

    @cached_property
    def _numbers(self) -> dict[int, int]:
        """Which of the intermediates an operand is."""
        return {b.operand: i for i, b in enumerate(self.reading.between)}

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
        return _of_loops(stage.plan)
    nest = stage.nest
    others = prod(nest.size(i).constant or 1 for i in nest.outer)
    step = min(estimates(nest, target).values())
    flow = 1 if not target.halves_vectors else FLOW_WISE if nest.wise else FLOW
    return others * (flow * steps_of(nest) * step + _after_sums(nest, target))


def _of_loops(plan: LoopsPlan) -> float:
    """Each instruction as often as it is computed: once for a vector of points, or for each of the dims that are outside of it."""
    total = 0.0
    for i, level in enumerate(plan.spec.levels()):
        points = prod(d.size.constant or 1 for d in plan.spec.dims[:level])
        total += instruction_cost(plan, i) * points / (plan.lanes if plan.vector_name in plan.depends[i] else 1)
    return total


def _after_sums(nest: Nest, target: Target) -> float:
    """Of what follows the sums of all rows and columns."""
    lanes = target.lanes(4)
    inside = nest.left.inside | nest.right.inside | {nest.contract}
    after = (
        instr.op for i, instr in enumerate(nest.spec.body) if i not in inside and instr.op not in ("load", "store")
    )
    vectors = (nest.size(nest.row).constant or 1) * -(-(nest.size(nest.column).constant or 1) // lanes)
    return vectors * sum(cycles(op, lanes) for op in after)


def _sharers(stage: Stage, target: Target) -> int:
    """Threads that share out the panels of a stage's factor in a kernel of its own."""
    return THREADS if stage.nest is not None and order(stage.nest, 4 * target.lanes(4)) == "panels" else 1


def _beyond(size: int, moves: int) -> tuple[float, float]:
    """Bytes of a thread's half of an operand from L3, or from memory, whose bytes move so many times."""
    half = size / THREADS
    return (half, 0.0) if half <= LEFT else (0.0, moves * half)
