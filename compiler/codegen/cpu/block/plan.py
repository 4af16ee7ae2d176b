"""What the stages of a block must be to each other, and what follows: lines that a tile of the result asks for, and scratch memory.

A tile is a run of the result's lines. Walking back from it, each intermediate is asked for a run of lines; a thread that takes tiles one
after the other keeps those that the next tile asks for again (a line buffer), and computes the others. Where a thread starts, or an
image, it computes all of them: its first lines are computed by its neighbour too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from effc.compiler.codegen.cpu.block.lines import Between, Lines
from effc.compiler.codegen.cpu.block.needs import Reading
from effc.compiler.codegen.cpu.block.reading import read
from effc.compiler.codegen.cpu.contraction.amx_form import UNIT_ROWS
from effc.compiler.codegen.cpu.contraction.form import form
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.spec import ITEM_SIZE, KernelSpec, Schedule

#: Threads that have scratch memory; pages of it that no thread touches cost nothing.
MOST_THREADS = 32
#: Bytes behind a thread's lines of an intermediate that moving them by whole vectors may touch.
SLACK = 64


@dataclass(frozen=True)
class Plan(Reading):
    """``tile``: lines of the result that a thread takes through all stages at a time. Where the stages are ``tiled``: tiles of ``height``
    rows instead; ``spare``: rows before a thread's first one that it may read, but does not use.
    """

    tile: int
    height: int = 1
    spare: int = 0

    @staticmethod
    def of(spec: KernelSpec, target: Target) -> Plan | str:
        """The plan of a block whose stages are packed and scheduled, or the reason why there is none."""
        found = read(spec, target, int(spec.schedule.get("slices", 1)))
        if isinstance(found, str):
            return found
        return planned(found, [stage.schedule for stage in spec.stages], int(spec.schedule["lines"]), target)

    @property
    def lines(self) -> Lines:
        """Of the result."""
        return self.stages[-1].lines

    @property
    def added(self) -> int:
        """Slices that are added up, through which a thread takes its lines one after the other; 1 where none are."""
        return 1 if self.sums is None else self.slices

    @property
    def units(self) -> Lines:
        """What threads share out: lines of the result, or tiles of rows."""
        lines = self.lines
        if self.sums is not None:
            return Lines(lines.images // self.slices, lines.height)
        return Lines(1, -(-lines.height // self.height)) if self.tiled else lines

    def share_elements(self) -> list[int]:
        """Of each intermediate in one thread's scratch memory."""
        found = []
        for need, between in zip(self.by_between, self.between, strict=True):
            lines = self.spare + self.tile * self.height if self.tiled else need.lines(self.tile)
            found.append(0 if between.shown else lines * between.stride + SLACK // self.item(between))
        return found

    def scratch_elements(self) -> list[int]:
        """Of each intermediate in all threads' scratch memory."""
        return [MOST_THREADS * elements for elements in self.share_elements()]

    def scratch_bytes(self) -> int:
        """Of one thread."""
        return sum(n * self.item(b) for n, b in zip(self.share_elements(), self.between, strict=True))

    def item(self, between: Between) -> int:
        """Bytes of an element of an intermediate."""
        return ITEM_SIZE[self.operands[between.operand].dtype]


def planned(reading: Reading, schedules: Sequence[Schedule], lines: int, target: Target) -> Plan | str:
    """The plan under the schedules of the stages, with tiles of so many ``lines``; or the reason why there is none."""
    if not reading.tiled:
        return Plan(**vars(reading), tile=lines)
    products = [(s.nest, own) for s, own in zip(reading.stages, schedules, strict=True) if s.nest is not None]
    if len({own["mr"] for _, own in products}) > 1 or any(own["order"] != "rows" for _, own in products):
        return "the stages do not walk the same tiles of rows"
    nest, schedule = products[0]
    # Units of tile registers are of one height, and the last one begins among the rows of that before (`contraction.amx`).
    spare = UNIT_ROWS if form(nest, target) == "amx" else 0
    return Plan(**vars(reading), tile=lines, height=int(schedule["mr"]), spare=spare)
