"""The kernel of a block: its factors packed, register tiles chosen, and as many lines a tile as are counted to be the fastest."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from effc.compiler.codegen.cpu.block.cost import L1_BYTES, Cost, Counter
from effc.compiler.codegen.cpu.block.needs import Reading
from effc.compiler.codegen.cpu.block.plan import Plan, planned
from effc.compiler.codegen.cpu.block.reading import read, slice_counts
from effc.compiler.codegen.cpu.block.stages import Stage, own
from effc.compiler.codegen.cpu.block.sums import packed_by_slices
from effc.compiler.codegen.cpu.contraction.cast import cast
from effc.compiler.codegen.cpu.contraction.form import filled_to, lanes_of
from effc.compiler.codegen.cpu.contraction.packing import Packing, packing
from effc.compiler.codegen.cpu.contraction.roles import Nest
from effc.compiler.codegen.cpu.contraction.schedule import as_schedule, estimates, steps_of, variants
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.expr import const
from effc.compiler.ir.spec import ITEM_SIZE, Dim, KernelSpec, Operand, Schedule

#: Bytes of all that lies between the stages of a tile: half of L2.
MOST_BYTES = 512 * 1024
#: Bytes of the widest intermediate where lines are tiles of rows: where L1 holds all of them and the factors, and where factors come
#: from L2 for each tile; with tile registers, which each stage configures anew for each tile. On two cores of Zen 4, 3136 rows through a
#: norm, and 96 to 384 channels and back: 0.98 of the speed of three kernels by 16 KiB, 1.04 by 64, 1.02 by 160; 16 to 64 and back: 1.01
#: to 1.12 by 16, 0.94 by 64. Loops read about as much as they write, and L1 holds both: 12544 rows of 96 channels, scaled and multiplied
#: to 16: 1.26 by 5 KiB, 1.07 by 10, 0.91 by 21.
SMALL_BYTES, ROWS_BYTES, REGISTERS_BYTES = 16 * 1024, 64 * 1024, 128 * 1024


@dataclass(frozen=True)
class Block:
    """``spec``: the block with packed factors, schedules and scratch memory; ``packings``: of its products."""

    spec: KernelSpec
    packings: tuple[Packing, ...]
    plan: Plan
    cost: Cost

    def derivations(self) -> list[tuple[int, str, dict[str, Any]]]:
        """``(operand, function, attributes)`` of all packed operands."""
        return [derivation for packed in self.packings for derivation in packed.derivations()]


def block_of(spec: KernelSpec, constants: Collection[int], target: Target, lines: int | None = None) -> Block | str:
    """The block ``spec``, of which ``constants`` are the operands that may be packed, or the reason why there is no kernel for it. Its dims
    are found, the size of its scratch memory, and, unless given, how many ``lines`` of the result a tile has.
    """
    packed = _packed(spec, constants, target, [None] * len(spec.stages))
    if isinstance(packed, str):
        return packed
    plain = _with_operands(spec, packed)
    found = read(plain, target)
    if isinstance(found, str):
        return found
    whole = _made(spec, found, constants, target, lines)
    if isinstance(whole, Block):
        return whole
    # Slices are the slower where whole lines fit: they write pieces of each pixel (0.95 of the speed, 144 channels by 48 at 56x56).
    cut = (read(plain, target, n) for n in slice_counts(plain, found))
    made = (_made(spec, r, constants, target, lines) for r in cut if isinstance(r, Reading))
    return min((b for b in made if isinstance(b, Block)), key=lambda b: b.cost.fused, default=whole)


def _made(
    spec: KernelSpec, found: Reading, constants: Collection[int], target: Target, lines: int | None
) -> Block | str:
    """`block_of`, of stages that were read."""
    schedules = _rows_schedules(found, target) if found.tiled else [_line_schedule(s, target) for s in found.stages]
    if schedules is None:
        return "no height of tiles serves all stages"
    packed = _packed(spec, constants, target, schedules)
    if isinstance(packed, str):
        return packed
    for stage, factor in zip(found.stages, packed, strict=True):
        if (
            factor is not None
            and stage.nest is not None
            and dict(factor.attributes)["filled"] != filled_to(stage.nest, target)
        ):
            return "panels for tile registers, for which a line has too few rows"
    if found.sums is not None and packed[-1] is not None:
        packed[-1] = packed_by_slices(packed[-1], found.slices)
    made = _with_operands(spec, packed, schedules)
    counter = Counter(found, tuple(0 if p is None else _bytes(made.operands[p.operand]) for p in packed), target)
    plan = _tiled(counter, [stage.schedule for stage in made.stages], target, lines)
    if isinstance(plan, str):
        return plan
    return Block(_finished(made, plan), tuple(p for p in packed if p is not None), plan, counter.of(plan))


def _packed(
    spec: KernelSpec, constants: Collection[int], target: Target, schedules: Sequence[Schedule | None]
) -> list[Packing | None] | str:
    """How the factor of each stage is packed, None for loops; where its schedule is known, in panels of as many columns."""
    found: list[Packing | None] = []
    for stage, schedule in zip(spec.stages, schedules, strict=True):
        if stage.template != "contraction":
            found.append(None)
            continue
        alone, numbers = own(stage)
        columns = None if schedule is None else int(schedule["nr"])
        fixed = tuple(i for i, n in enumerate(numbers) if n in constants)
        packed = _packing(_anywhere(alone, fixed), fixed, target, columns)
        if isinstance(packed, str):
            return packed
        operands = list(stage.operands)
        operands[numbers[packed.operand]] = packed.spec.operands[packed.operand]
        found.append(replace(packed, operand=numbers[packed.operand], spec=replace(stage, operands=tuple(operands))))
    return found


def _anywhere(spec: KernelSpec, constants: Collection[int]) -> KernelSpec:
    """A stage that is the same wherever its other operands lie: between stages, or outside of the block."""
    operands = (o if i in constants else replace(o, role="read", size=const(0)) for i, o in enumerate(spec.operands))
    return replace(spec, operands=tuple(operands))


@lru_cache(maxsize=1024)
def _packing(spec: KernelSpec, constants: tuple[int, ...], target: Target, columns: int | None) -> Packing | str:
    """How the factor of a stage is packed, or the reason why it cannot be."""
    found = packing(spec, constants, target)
    if isinstance(found, str):
        return found
    if found.function != "pack_panels" or found.further:
        return f"a factor in the form that {found.function} makes"
    if columns is None or found.spec.schedule["nr"] == columns:
        return found
    nest = cast(found.spec, target)
    assert isinstance(nest, Nest), "it was packed"
    wanted = as_schedule(nest, target, 1, columns // lanes_of(nest, target))
    again = packing(spec, constants, target, {found.spec.key(): wanted})
    if isinstance(again, Packing) and again.spec.schedule["nr"] == columns:
        return again
    return "panels of other columns than a line's tiles have"


def _line_schedule(stage: Stage, target: Target) -> Schedule | None:
    """The register tile of the lowest count for the rows of one line."""
    return None if stage.nest is None else _fastest(replace(stage, operands=()), target)


@lru_cache(maxsize=1024)
def _fastest(stage: Stage, target: Target) -> Schedule:
    nest = stage.nest
    assert nest is not None, "loops have no register tiles"
    counts = _whole(nest, target)
    mr, vectors = min(counts, key=lambda t: (counts[t], -t[0] * t[1], t))
    return _rows_outside(variants(nest, target, mr, vectors))


def _whole(nest: Nest, target: Target) -> Mapping[tuple[int, int], float]:
    """Counts of register tiles; where columns are a slice of all, those whose panels are whole ones of all."""
    stored = {name for instr in nest.spec.body if instr.op == "store" for name in instr["address"].variables()}
    cut = any(i < nest.lines and f"d{i}" in stored for i in nest.batch)
    columns, lanes = nest.size(nest.column).constant, lanes_of(nest, target)
    counts = estimates(nest, target)
    return {t: n for t, n in counts.items() if not cut or (columns or 0) % (t[1] * lanes) == 0}


def _rows_outside(found: Sequence[Schedule]) -> Schedule:
    return next(s for s in found if s["order"] == "rows")


def _rows_schedules(reading: Reading, target: Target) -> list[Schedule | None] | None:
    """Of the stages, with one height of tiles for all products: those of the lowest count. None where no height serves all."""
    counts = [None if s.nest is None else _by_height(replace(s, operands=()), target) for s in reading.stages]
    heights = set.intersection(*(set(c) for c in counts if c is not None))
    if not heights:
        return None
    height = min(heights, key=lambda mr: (sum(c[mr][0] for c in counts if c is not None), -mr))
    return [
        None if c is None or s.nest is None else _rows_outside(variants(s.nest, target, height, c[height][1]))
        for s, c in zip(reading.stages, counts, strict=True)
    ]


@lru_cache(maxsize=1024)
def _by_height(stage: Stage, target: Target) -> dict[int, tuple[float, int]]:
    """The cycles of the best tile of each height, and its vectors."""
    nest = stage.nest
    assert nest is not None, "loops have no register tiles"
    steps = steps_of(nest)
    found: dict[int, tuple[float, int]] = {}
    for (mr, vectors), step in estimates(nest, target).items():
        count = (steps * step, vectors)
        found[mr] = min(found.get(mr, count), count)
    return found


def _with_operands(
    spec: KernelSpec, packed: Sequence[Packing | None], schedules: Sequence[Schedule | None] | None = None
) -> KernelSpec:
    """``spec`` with the packed operands, and the schedules, of its stages."""
    operands = list(spec.operands)
    for factor in packed:
        if factor is not None:
            operands[factor.operand] = factor.spec.operands[factor.operand]
    plain = Schedule()
    stages = tuple(
        replace(stage, operands=tuple(operands), schedule=schedule or plain)
        for stage, schedule in zip(spec.stages, schedules or [None] * len(spec.stages), strict=True)
    )
    return replace(spec, operands=tuple(operands), stages=stages)


def _tiled(counter: Counter, schedules: Sequence[Schedule], target: Target, lines: int | None) -> Plan | str:
    """The plan with the tile of the lowest count, or with tiles of ``lines``."""
    first = planned(counter.reading, schedules, lines or 1, target)
    if isinstance(first, str) or lines is not None:
        return first
    if first.tiled:
        widest = first.height * max(b.stride * first.item(b) for b in first.between)
        first_row = first.height * first.between[0].stride * first.item(first.between[0])
        most = widest if first.stages[0].plan is None else max(widest, 2 * first_row)
        plain, near = (
            replace(first, tile=max(size // w, 1)) for size, w in ((ROWS_BYTES, widest), (SMALL_BYTES, most))
        )
        if first.spare:
            return replace(first, tile=max(REGISTERS_BYTES // widest, 1))
        return near if sum(counter.factors) <= SMALL_BYTES and near.scratch_bytes() <= L1_BYTES else plain
    if first.scratch_bytes() > MOST_BYTES:
        return "what lies between the stages does not fit L2"
    plans = [replace(first, tile=tile) for tile in range(1, first.lines.height + 1)]
    return min((p for p in plans if p.scratch_bytes() <= MOST_BYTES), key=lambda p: (counter.of(p).fused, -p.tile))


def _finished(spec: KernelSpec, plan: Plan) -> KernelSpec:
    """``spec`` with its dims, its tile, and scratch memory."""
    operands = list(spec.operands)
    for between, size in zip(plan.between, plan.scratch_elements(), strict=True):
        if not between.shown:
            operands[between.operand] = replace(operands[between.operand], size=const(size))
    if plan.fold is not None:
        operands.append(plan.fold.line.operands[plan.fold.partial])
    stages = tuple(replace(stage, operands=tuple(operands)) for stage in spec.stages)
    lines = plan.lines
    dims = (Dim(const(lines.height)),) if plan.tiled else (Dim(const(lines.images)), Dim(const(lines.height)))
    made = replace(spec, dims=dims, operands=tuple(operands), stages=stages)
    cut = {"slices": plan.slices} if plan.slices > 1 else {}
    return made.with_schedule(lines=plan.tile, **cut)


def _bytes(operand: Operand) -> int:
    assert operand.size.constant is not None, "a packed factor has known sizes"
    return operand.size.constant * ITEM_SIZE[operand.dtype]
