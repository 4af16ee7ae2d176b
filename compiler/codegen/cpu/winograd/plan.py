"""Sizes of a Winograd kernel: its register tile, its blocks of tiles, its scratch memory; and what it would cost.

A block's transformed input stays in L2 while panel after panel of the transformed kernel is multiplied with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from effc.compiler.codegen.cpu.target import Target
from effc.compiler.codegen.cpu.winograd.form import OUTPUTS, SIDE, TAPS, Form
from effc.compiler.ir.expr import Expr, as_expr, floordiv, product
from effc.compiler.ir.spec import Schedule

#: Bytes of a block's transformed input and sums, of 1 MiB of L2: 200-320 KiB ran fastest where the kernel's panels stay in L2 or
#: nearly so, up to 1.8 times as fast as 690 KiB; twice as much halves the reading of a kernel that does not (256 channels: 1.1 times).
BLOCK_BYTES, LARGE_KERNEL = 320 * 1024, 1024 * 1024
#: Threads that have scratch memory; pages of it that no thread touches cost nothing.
MOST_THREADS = 32
#: Units that a kernel is cut into at least, where there are as many: two threads are then even within an eighth.
UNITS = 8
#: Tiles for which a plan is counted where their number is known only at run time: images of 14 to 56 a side; and the middle.
TYPICAL, UNKNOWN = (49, 196, 784), 196
#: Bytes of a kernel a cycle that reach a core from memory while it multiplies.
FAR_BYTES = 8
UNROLL = 4
#: Cycles of 16 lanes' transforms of one tile: 16 loads, 32 additions, 16 stores; and 16 loads, 24 additions, an epilogue.
INPUT_CYCLES, OUTPUT_CYCLES = 26, 22
#: Cycles around a register tile, and multiply-adds and loads a cycle.
TILE_CYCLES, FMAS, LOADS, LATENCY = 30, 2, 2, 4
_LINE = 16


@dataclass(frozen=True)
class Plan:
    """``mr`` x ``nr``: the register tile; ``tiles``: 2x2 outputs in a block, a multiple of ``mr``; all figures in elements."""

    form: Form
    lanes: int
    mr: int
    nr: int
    tiles: int
    unroll: int

    @staticmethod
    def of(form: Form, schedule: Schedule, target: Target) -> Plan:
        """ValueError where the schedule does not fit the target."""
        lanes = target.lanes(4)
        mr, nr, tiles = int(schedule["mr"]), int(schedule["nr"]), int(schedule["tiles"])
        if nr % lanes or tiles % mr:
            raise ValueError(f"nr = {nr} is not a multiple of {lanes} lanes, or {tiles} tiles not one of mr = {mr}")
        return Plan(form, lanes, mr, nr, tiles, int(schedule["unroll"]))

    @property
    def columns(self) -> int:
        return _columns(self.form)

    @property
    def panels(self) -> int:
        return ceil(self.columns / self.nr)

    @property
    def kernel_elements(self) -> int:
        """Of the packed kernel, all panels of all groups."""
        return self.form.group_count * self.panels * SIDE * SIDE * self.form.depth * self.nr

    @property
    def row_stride(self) -> int:
        """Of the transformed input: an odd number of cache lines, so that rows do not fall into one set of L1."""
        return _odd_lines(self.form.depth)

    @property
    def input_plane(self) -> int:
        return _odd_lines(self.tiles * self.row_stride)

    @property
    def sum_plane(self) -> int:
        return _odd_lines(self.tiles * self.nr)

    @property
    def share_elements(self) -> int:
        """Scratch memory of one thread: the planes, and one tile's outputs."""
        return SIDE * SIDE * (self.input_plane + self.sum_plane) + OUTPUTS * OUTPUTS * self.lanes

    @property
    def scratch_elements(self) -> int:
        return MOST_THREADS * self.share_elements

    @property
    def counts(self) -> list[Expr]:
        """Tiles along each outer dim and the window's two."""
        nest = self.form.nest
        sides = [
            floordiv(nest.size(i) + (OUTPUTS - 1), as_expr(OUTPUTS)) for i in (self.form.height[0], self.form.width[0])
        ]
        return [*(nest.size(i) for i in self.form.outer), *sides]

    @property
    def blocks(self) -> Expr:
        return floordiv(product(self.counts) + (self.tiles - 1), as_expr(self.tiles))

    @property
    def cycles(self) -> int:
        """Of one block and panel of a group, roughly."""
        return SIDE * SIDE * self.tiles * self.form.depth * self.nr // (FMAS * self.lanes)


def schedules(form: Form, target: Target) -> list[Schedule]:
    """One a register tile worth trying, the cheapest first."""
    found = [as_schedule(form, target, *t) for t in _register_tiles(form, target)]
    return sorted(found, key=lambda s: (estimate(Plan.of(form, s, target)), -s["mr"] * s["nr"]))


def as_schedule(form: Form, target: Target, mr: int, vectors: int) -> Schedule:
    """The tile with blocks that are even, fill their share of L2, and are enough to divide among threads."""
    nr = vectors * target.lanes(4)
    kernel = 4 * SIDE * SIDE * form.depth * _columns(form) * form.group_count
    size = 2 * BLOCK_BYTES if kernel > LARGE_KERNEL else BLOCK_BYTES
    most = max(size // (4 * SIDE * SIDE * (_odd_lines(form.depth) + nr)), mr)
    total = _tiles(form)
    panels = form.group_count * ceil(_columns(form) / nr)
    count = max(ceil(total / most), min(ceil(UNITS / panels), total // (2 * mr)), 1)
    tiles = ceil(ceil(total / count) / mr) * mr
    if tiles > most and tiles > mr:
        tiles -= mr
    return Schedule((("mr", mr), ("nr", nr), ("tiles", tiles), ("unroll", UNROLL), ("winograd", OUTPUTS)))


def estimate(plan: Plan) -> float:
    """Cycles of the whole convolution on one thread; where the number of tiles is unknown, of ``UNKNOWN`` of them on average."""
    known = _known_tiles(plan.form)
    if known is not None:
        return _cycles(plan, known)
    return sum(_cycles(plan, total) * UNKNOWN / total for total in TYPICAL) / len(TYPICAL)


def _cycles(plan: Plan, total: int) -> float:
    """Cycles of so many tiles. A kernel that L2 does not hold comes anew for each block, beside the arithmetic."""
    vectors, blocks = plan.nr // plan.lanes, ceil(total / plan.tiles)
    rows = (blocks - 1) * (plan.tiles // plan.mr) + ceil((total - (blocks - 1) * plan.tiles) / plan.mr)
    step = max(plan.mr * vectors / FMAS, (plan.mr + vectors) / LOADS, LATENCY)
    multiply = SIDE * SIDE * rows * plan.panels * (plan.form.depth * step + TILE_CYCLES)
    transforms = total * (plan.form.depth / plan.lanes * INPUT_CYCLES + plan.panels * vectors * OUTPUT_CYCLES)
    kernel = 4 * plan.kernel_elements
    stream = blocks * kernel / FAR_BYTES if kernel > LARGE_KERNEL else 0
    return max(plan.form.group_count * multiply, stream) + plan.form.group_count * transforms


def direct_cycles(plan: Plan) -> float:
    """Cycles of the direct method on one thread, at nine tenths of the multiply-adds' rate."""
    outputs = _tiles(plan.form) * OUTPUTS * OUTPUTS
    columns = plan.form.group_count * plan.columns
    return outputs * TAPS * TAPS * plan.form.depth * columns / (plan.lanes * FMAS * 0.9)


def _register_tiles(form: Form, target: Target) -> list[tuple[int, int]]:
    registers = 32 if target.vector_bytes == 64 else 16
    widest = ceil(_columns(form) / target.lanes(4))
    return [
        (mr, vectors)
        for vectors in range(1, min(widest, 4) + 1)
        for mr in range(2, min(_tiles(form), 14) + 1)
        if mr * vectors + vectors + 1 <= registers
    ]


def _columns(form: Form) -> int:
    found = form.nest.size(form.nest.column).constant
    assert found is not None, "a packed kernel has known sizes"
    return found


def _known_tiles(form: Form) -> int | None:
    found = product(Plan(form, 1, 1, 1, 1, 1).counts).constant
    return None if found is None else max(found, 1)


def _tiles(form: Form) -> int:
    return _known_tiles(form) or UNKNOWN


def _odd_lines(elements: int) -> int:
    lines = ceil(elements / _LINE)
    return (lines + 1 - lines % 2) * _LINE
