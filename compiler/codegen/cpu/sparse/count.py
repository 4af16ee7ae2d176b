"""What a sparse kernel would cost: cycles of a core that starts two multiply-adds and two loads of a vector in one.

A core of Zen 4 takes two cycles for each of these, so what else a kernel does costs it half of what is counted here for it.
"""

from __future__ import annotations

from math import ceil

from effc.compiler.codegen.cpu.contraction.rows import split
from effc.compiler.codegen.cpu.sparse.form import LINE, Form
from effc.compiler.codegen.cpu.sparse.plan import Plan

#: Rows taken for a number that is known only at run time.
UNKNOWN = 256
#: Bytes of the dense factor's tile that stay in the first-level cache.
L1_BYTES = 40 * 1024
#: Multiply-adds and loads a cycle, the latency of a multiply-add, cycles that a vector takes from L2 beyond those of a load.
FMAS, LOADS, LATENCY, FAR = 2, 2, 4, 0.8
#: Cycles of a row of blocks beside its elements: its ends, a mispredicted exit, its epilogue; of a vector of sums that is read or written
#: where it waits for the next part, or for the rest of its group; of a vector that is transposed, copied, or folded.
BLOCK_CYCLES, WAITING_CYCLES, NEAR_CYCLES, TURN_CYCLES, COPY_CYCLES, FOLD_CYCLES = 12, 3, 1, 5, 3, 4.5
#: Lines in one set of the first-level cache that stay beside those that pass, and cycles of a load where there are more. Zen 4 has sets of
#: 8: blocks of 1x16 of 49 x 1024 x 1024 by ``dots`` took 0.68 of the time with 5 rows of what they took with 10.
MOST_LINES, CROWDED = 7, 0.3
#: Bytes of stored elements that stay in L2 beside a tile, and cycles of a cache line of them beyond: it is fetched in time mostly.
STREAM_BYTES, STREAM_CYCLES = 1024 * 1024, 0.4
#: Loads that a vector at any place takes, most of which cross a cache line; cycles of one whose outputs are written one by one.
UNALIGNED, WRITE_CYCLES = 1.9, 14


def estimate(plan: Plan) -> float:
    """Cycles of the whole product on one thread."""
    rows = plan.form.rows.constant
    count = UNKNOWN if rows is None else max(rows, 1)
    outer = plan.form.outer.constant or 1
    if plan.in_place:
        return outer * sum(tiles * _tile_cycles(plan, height) for tiles, height in split(count, plan.height))
    if plan.method == "window":
        return outer * plan.bands.count * _tile_cycles(plan, plan.height)
    whole, rest = divmod(ceil(count / plan.lanes), plan.height)
    return outer * (whole * _tile_cycles(plan, plan.height) + (_tile_cycles(plan, rest) if rest else 0))


def unit_cycles(plan: Plan) -> int:
    """Of one unit of work."""
    return int(_tile_cycles(plan, plan.height)) // plan.shares + 1


def _tile_cycles(plan: Plan, height: int) -> float:
    """Of a tile of ``height`` vectors of rows, or rows, or of a band in such tiles, and all columns."""
    return {"columns": _columns, "dots": _dots, "blocks": _blocks, "rows": _rows, "window": _window}[plan.method](
        plan, height
    )


def _columns(plan: Plan, height: int) -> float:
    form, sparsity = plan.form, plan.form.sparsity
    vectors = sparsity.rows // plan.lanes
    sums = height * vectors
    step = max(sums / FMAS, (height + vectors) / LOADS, LATENCY / plan.sets) + _crowding(form, height)
    return sparsity.stored * (sparsity.columns * step + 0.5) + form.blocks * (BLOCK_CYCLES + 2 * sums)


def _dots(plan: Plan, height: int) -> float:
    form = plan.form
    far = FAR * max(0.0, 1 - L1_BYTES / (4 * form.met(height)[0]))
    step = max(height / FMAS, (height + 1) / LOADS + far * height, LATENCY / plan.sets) + _crowding(form, height)
    return form.sparsity.stored * (plan.turns * step + 0.5) + form.columns * (BLOCK_CYCLES + FOLD_CYCLES * height)


def _blocks(plan: Plan, height: int) -> float:
    form, sparsity = plan.form, plan.form.sparsity
    points = sparsity.columns * sparsity.rows
    step = max((points + sparsity.rows) / FMAS, (points + 2 * sparsity.rows) / LOADS)
    lists = plan.parts * plan.shares * height * (BLOCK_CYCLES + sparsity.columns)
    streamed = STREAM_CYCLES * sparsity.elements / LINE if 4 * sparsity.elements > STREAM_BYTES else 0.0
    passes = 2 * form.blocks * sparsity.rows * height * NEAR_CYCLES
    return sparsity.stored * step * height + lists + streamed + passes + _moved(plan, height)


def _rows(plan: Plan, height: int) -> float:
    copied = plan.form.sum if plan.staged and plan.form.planes else 0
    near = plan.part_length * height * plan.lanes
    return _walk(plan, height, near, 1) + _moved(plan, height) + copied * height * COPY_CYCLES


def _window(plan: Plan, height: int) -> float:
    form, bands = plan.form, plan.bands
    staged = ceil(bands.pixels / plan.lanes) * form.sizes[-1] * TURN_CYCLES
    walked = _walk(plan, height, bands.near(plan.tile_rows, plan.parts), UNALIGNED)
    return staged + ceil(bands.outputs / plan.tile_rows) * (walked + height * form.columns * WRITE_CYCLES)


def _walk(plan: Plan, height: int, near: int, crossing: float) -> float:
    """Of the sums of a tile. ``near``: elements of it that one part meets; ``crossing``: loads that a vector takes."""
    form, sparsity = plan.form, plan.form.sparsity
    points, vectors = sparsity.columns * sparsity.rows, sparsity.columns * height
    far = FAR * max(0.0, 1 - L1_BYTES / (4 * near))
    said = 1 if plan.sets % 2 else 0.5  # two blocks' places are one load
    step = max(
        points * height / FMAS,
        (vectors * crossing + points + said) / LOADS + far * vectors,
        LATENCY * sparsity.columns / plan.sets,
    )
    passes = 2 * (plan.parts - 1) * WAITING_CYCLES + (2 * NEAR_CYCLES if plan.waits else WAITING_CYCLES)
    sums = form.blocks * sparsity.rows * height
    return sparsity.stored * step + plan.parts * form.blocks * BLOCK_CYCLES + passes * sums


def _moved(plan: Plan, height: int) -> float:
    """Of the transposes on the way in and out."""
    form = plan.form
    return height * ((form.columns if form.by_columns else 0) + (0 if form.planes else form.sum)) * TURN_CYCLES


def _crowding(form: Form, rows: int) -> float:
    """Cycles of a step of so many rows whose lines do not stay in the first-level cache, as they share its sets."""
    return CROWDED * rows if form.met(rows)[1] > MOST_LINES else 0.0
