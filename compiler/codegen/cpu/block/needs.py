"""Which lines of each stage and intermediate a tile of a block's result asks for.

Walking back from a tile, each intermediate is asked for a run of lines by the stages that read it, and what stores it is asked for these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from effc.compiler.codegen.cpu.block.fold import Fold
from effc.compiler.codegen.cpu.block.lines import Between, Reach
from effc.compiler.codegen.cpu.block.stages import Stage
from effc.compiler.ir.spec import Operand


@dataclass(frozen=True)
class Need:
    """A tile of the result's lines ``[first, end)`` asks for the lines ``[step * first + low, step * (end - 1) + high + 1)`` of a stage or
    an intermediate, where these exist.
    """

    step: int
    low: int
    high: int

    def lines(self, tile: int) -> int:
        """For a tile of so many lines, at most."""
        return self.step * (tile - 1) + self.high - self.low + 1

    @property
    def kept(self) -> int:
        """Lines that two tiles, one behind the other, ask for."""
        return max(self.high - self.low + 1 - self.step, 0)


@dataclass(frozen=True)
class Reading:
    """A plan without what schedules say. ``fold``: where the last stage is the first half of one. ``slices``: of channels, each of which
    has images of its own. ``sums``: what the last stage is for the first slice, and for those between, where it adds slices up.
    """

    operands: tuple[Operand, ...]
    stages: tuple[Stage, ...]
    between: tuple[Between, ...]
    by_stage: tuple[Need, ...]
    by_between: tuple[Need, ...]
    tiled: bool
    fold: Fold | None
    slices: int
    sums: tuple[Stage, Stage] | None


def join(
    operands: tuple[Operand, ...],
    stages: Sequence[Stage],
    tiled: bool,
    fold: Fold | None = None,
    slices: int = 1,
    sums: tuple[Stage, Stage] | None = None,
) -> Reading | str:
    """What the stages ask of each other, or the reason why they do not follow each other line by line."""
    needs: list[Need | None] = [*[None] * (len(stages) - 1), Need(1, 0, 0)]
    between: list[Between] = []
    by_between: list[Need] = []
    for number in reversed(range(len(stages) - 1)):
        stored = {*stages[number].touched("store")}
        if len(stored) != 1:
            return "a stage stores more than the next ones read"
        (operand,) = stored
        found = _placed(stages[number], operand, operands[operand].role != "scratch")
        if isinstance(found, str):
            return found
        asked = _asked(stages[number:], needs[number:], found)
        if isinstance(asked, str):
            return asked
        needs[number] = asked
        between.insert(0, found)
        by_between.insert(0, asked)
    if len({b.operand for b in between}) < len(between):
        return "an intermediate is stored twice"
    if any(b.operand in _read_by(stages[: i + 1]) for i, b in enumerate(between)):
        return "a stage reads what a later one stores"
    known = tuple(need for need in needs if need is not None)
    return Reading(operands, tuple(stages), tuple(between), known, tuple(by_between), tiled, fold, slices, sums)


def _read_by(stages: Sequence[Stage]) -> set[int]:
    return {operand for stage in stages for operand in stage.touched("load")}


def _placed(stage: Stage, operand: int, shown: bool) -> Between | str:
    """Where the lines of the intermediate lie that ``stage`` stores."""
    stores = [i for op, i in stage.accesses(operand) if op == "store"]
    if len(stores) != 1 or any(op == "load" for op, _ in stage.accesses(operand)):
        return "an intermediate is stored in parts, or updated"
    if shown:
        points = prod(d.size.constant or 0 for d in stage.body.dims if d.kind == "parallel")
        return Between(operand, stage.lines, points // stage.lines.count, shown=True)
    address = stage.body.body[stores[0]]["address"]
    factors = [address.coefficient(f"d{i}") for i in range(len(stage.body.dims))]
    known = [None if f is None else f.constant for f in factors]
    stride = known[stage.first - 1] if stage.lines.count > 1 else _extent(stage, known)
    if not stride or stride < 0:
        return "an intermediate whose lines do not follow each other"
    found = Between(operand, stage.lines, stride, shown)
    where = stage.reach(stores[0], found)
    if isinstance(where, str):
        return where
    return found if where == Reach(1, 0, 0) else "an intermediate is stored with lines before it"


def _extent(stage: Stage, factors: Sequence[int | None]) -> int | None:
    """Elements from the first that is stored to past the last."""
    total = 1
    for factor, dim in zip(factors, stage.body.dims, strict=True):
        if factor is None or dim.size.constant is None:
            return None
        total += factor * (dim.size.constant - 1)
    return total


def _asked(stages: Sequence[Stage], needs: Sequence[Need | None], between: Between) -> Need | str:
    """What a tile asks of an intermediate that the first of ``stages`` stores, through the later ones, which read it."""
    if between.shown:
        return _shown(stages, needs, between.operand)
    found: Need | None = None
    for stage, need in zip(stages[1:], needs[1:], strict=True):
        for op, instr in stage.accesses(between.operand):
            if op == "store":
                return "an intermediate is stored twice"
            where = stage.reach(instr, between)
            if isinstance(where, str):
                return where
            assert need is not None, "later stages come first"
            step = where.step * need.step
            own = Need(step, where.step * need.low + where.low, where.step * need.high + where.high)
            if found is not None and found.step != step:
                return "an intermediate is read at two steps"
            found = own if found is None else Need(step, min(found.low, own.low), max(found.high, own.high))
    return found or "an intermediate that no stage reads"


def _shown(stages: Sequence[Stage], needs: Sequence[Need | None], operand: int) -> Need | str:
    """What a tile asks of an intermediate that is a result too: its own lines, or threads would write the same elements."""
    ((_, stored),) = stages[0].accesses(operand)
    lines = stages[0].footprint(stored)
    for stage, need in zip(stages[1:], needs[1:], strict=True):
        for op, instr in stage.accesses(operand):
            if op == "store":
                return "an intermediate is stored twice"
            same = stage.lines == stages[0].lines == stages[-1].lines and stage.footprint(instr) == lines
            if lines is None or need != Need(1, 0, 0) or not same:
                return "a result of which a tile asks for more than its own lines"
    return Need(1, 0, 0)
