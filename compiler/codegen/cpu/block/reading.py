"""The stages of a block, read: as lines of images, as pieces of these, in slices of channels, or as tiles of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from effc.compiler.codegen.cpu.block.fold import Fold, fold
from effc.compiler.codegen.cpu.block.geometry import lines_of, operands_of
from effc.compiler.codegen.cpu.block.lines import Lines
from effc.compiler.codegen.cpu.block.needs import Need, Reading, join
from effc.compiler.codegen.cpu.block.slices import channels, sliced
from effc.compiler.codegen.cpu.block.stages import Stage, own, read_stage
from effc.compiler.codegen.cpu.block.sums import sums_of
from effc.compiler.codegen.cpu.contraction.cast import cast
from effc.compiler.codegen.cpu.contraction.form import form
from effc.compiler.codegen.cpu.contraction.roles import Nest
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.spec import KernelSpec

#: Pixels of a piece of a line at least: as many as a register tile has rows.
LEAST_PIXELS = 12
#: Channels that a slice may have: whole vectors. The fewer, the more often what all slices read or add up to is moved.
SLICES = (16, 32, 48, 64, 96, 128, 192, 288)


def read(spec: KernelSpec, target: Target, slices: int = 1) -> Reading | str:
    """The stages of a block, whose factors are packed, and how they ask for each other's lines; or the reason why they are no block.
    ``slices``: of channels, one of `slice_counts`.
    """
    rows = _read(spec, _rows(spec, target), target, tiled=True)
    if isinstance(rows, Reading):
        return rows
    lines = lines_of(spec)
    if lines is None:
        return rows
    found = _read(spec, lines, target, slices)
    pieces = None if isinstance(found, str) else _pieces(found)
    finer = None if pieces is None else _read(spec, pieces, target)
    return finer if isinstance(finer, Reading) else found


def slice_counts(spec: KernelSpec, reading: Reading) -> list[int]:
    """Into how many slices of channels the block ``spec``, as ``reading`` has it, may be cut."""
    hidden = _hidden(spec)
    if reading.tiled or not hidden or all(need.kept == 0 for need in reading.by_stage):
        return []
    last = spec.stages[-1] if reading.fold is None else reading.fold.line
    count = channels((*spec.stages[:-1], last), hidden)
    return [] if count is None else [count // size for size in SLICES if size < count and count % size == 0]


def _pieces(reading: Reading) -> tuple[Lines, ...] | None:
    """Pieces of lines of at least `LEAST_PIXELS`, where no stage reads other lines than its own; None where there are none."""
    lines = {stage.lines for stage in reading.stages}
    widths = {stage.nest.size(stage.nest.row).constant or 1 for stage in reading.stages if stage.nest is not None}
    alone = all(need == Need(1, 0, 0) for need in reading.by_stage)
    if len(lines) > 1 or len(widths) > 1 or reading.fold is not None or not alone:
        return None
    ((line,), (width,)) = lines, widths
    pixels = next((n for n in range(LEAST_PIXELS, width) if width % n == 0), width)
    return None if pixels == width else (Lines(line.images, line.height * (width // pixels)),) * len(reading.stages)


def _rows(spec: KernelSpec, target: Target) -> tuple[Lines, ...] | None:
    """As many lines as the first product has rows, for all stages."""
    for stage in spec.stages:
        nest = cast(own(stage)[0], target) if stage.template == "contraction" else ""
        if isinstance(nest, Nest):
            rows = nest.size(nest.row).constant
            return None if rows is None else (Lines(1, rows),) * len(spec.stages)
    return None


def _read(
    spec: KernelSpec, lines: Sequence[Lines] | None, target: Target, slices: int = 1, *, tiled: bool = False
) -> Reading | str:
    if lines is None:
        return "no stage is a product whose rows are of a known number"
    stages: list[Stage] = []
    last = None if tiled else _fold(spec, lines[-1])
    if last is not None:
        spec = replace(spec, operands=last.line.operands, stages=(*spec.stages[:-1], last.line))
    if slices > 1:
        spec = replace(spec, stages=sliced(spec.stages, _hidden(spec), slices))
        lines = [Lines(slices * these.images, these.height) for these in lines]
    sums = sums_of(spec.stages[-1]) if slices > 1 else None
    if sums is not None:
        spec = replace(spec, stages=(*spec.stages[:-1], sums.first, sums.between, sums.last))
        lines = [*lines, lines[-1], lines[-1]]
    for stage, these in zip(spec.stages, lines, strict=True):
        found = read_stage(stage, these, tiled, target)
        if isinstance(found, str):
            return found
        stages.append(found)
    if len({form(s.nest, target) for s in stages if s.nest is not None}) > 1:
        return "some stages run on tile registers, others on vectors"
    if sums is None:
        return join(spec.operands, stages, tiled, last, slices)
    *others, first, between, end = stages
    return join(spec.operands, [*others, end], tiled, last, slices, (first, between))


def _hidden(spec: KernelSpec) -> set[int]:
    """The operands that lie between the stages alone."""
    stored = {operand for stage in spec.stages[:-1] for operand in operands_of(stage, "store")}
    return {operand for operand in stored if spec.operands[operand].role == "scratch"}


def _fold(spec: KernelSpec, lines: Lines) -> Fold | None:
    """The last stage in two steps, where it reduces all lines; what the first one writes is the last operand."""
    touched = {operand for stage in spec.stages for op in ("load", "store") for operand in operands_of(stage, op)}
    between = sorted(operand for stage in spec.stages[:-1] for operand in operands_of(stage, "store"))
    return fold(spec.stages[-1], lines, between, max(touched) + 1)
