"""The plans of sparse kernels that are worth trying."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import ceil, prod

from effc.compiler.codegen.cpu.contraction.rows import split
from effc.compiler.codegen.cpu.sparse.band import Band
from effc.compiler.codegen.cpu.sparse.count import FMAS, L1_BYTES, LATENCY, UNKNOWN, estimate
from effc.compiler.codegen.cpu.sparse.form import Form
from effc.compiler.codegen.cpu.sparse.plan import Plan
from effc.compiler.codegen.cpu.target import Target

#: Units that a kernel is cut into at least, where there are as many: two threads are then even within an eighth.
UNITS = 8
#: Bytes of stored elements that a unit of the ``columns`` method walks through for every tile of rows: they stay in L2.
NEAR_BYTES = 384 * 1024
#: Bytes of the sums of a share that stay in the first-level cache while the sum is walked (``blocks``).
SUM_BYTES = 16 * 1024
#: Elements of the sum in a block from which on its rows are worth their registers, and sums that then grow side by side.
LEAST_COLUMNS, BLOCK_CHAINS = 4, 4


def plans(form: Form, target: Target) -> list[Plan]:
    """All that are worth trying, the cheapest first."""
    return sorted(_offered(form, target), key=lambda p: (estimate(p), p.parts, p.height))


def _offered(form: Form, target: Target) -> Iterator[Plan]:
    lanes, registers = target.lanes(4), 32 if target.vector_bytes == 64 else 16
    sparsity, rows = form.sparsity, form.rows.constant
    if form.by_columns and sparsity.rows % lanes == 0:
        yield from _in_place(form, lanes, registers, "columns", sparsity.rows // lanes, sparsity.columns)
    if (
        form.by_columns
        and not form.planes
        and sparsity.rows == 1
        and sparsity.columns % lanes == 0
        and form.sum >= lanes
    ):
        yield from _in_place(form, lanes, registers, "dots", 1, sparsity.columns // lanes)
    if form.positions:
        bands = Band.of(form)
        if bands is not None:
            yield from _in_parts(bands.form, lanes, registers, "window", ceil(bands.outputs / lanes))
        return
    if form.nest.row is None:
        return
    widest = ceil((rows or UNKNOWN) / lanes)
    sets = min((registers - sparsity.columns - 2) // sparsity.rows, ceil(BLOCK_CHAINS / sparsity.rows))
    if sparsity.columns >= LEAST_COLUMNS and sets >= 1:
        for height in range(1, min(widest, 4) + 1):
            yield _shared(form, lanes, "blocks", height, ceil(form.sum / sparsity.columns), sets)
    yield from _in_parts(form, lanes, registers, "rows", widest)


def _in_parts(form: Form, lanes: int, registers: int, method: str, widest: int) -> Iterator[Plan]:
    """Heights up to ``widest`` vectors, with the sum in as many parts as may pay."""
    sparsity = form.sparsity
    for height in range(1, min(widest, 8) + 1):
        sums, beside = height * sparsity.rows, (height if sparsity.rows > 1 else 1) + 1
        if sums + beside > registers:
            continue
        sets = _sets(sums, registers - beside, sparsity.columns)
        for parts in range(1, 9):
            found = _shared(form, lanes, method, height, parts, sets)
            length = found.part_length
            if ceil(form.sum / length) == parts and (parts == 1 or 8 * length * height * lanes > L1_BYTES):
                yield found


def _in_place(form: Form, lanes: int, registers: int, method: str, vectors: int, turns: int) -> Iterator[Plan]:
    """One for each height that occurs. ``vectors``: of sums, for each row; ``turns``: additions that a block takes."""
    rows = form.rows.constant
    for height in range(1, min(max(rows or 8, 1), 14) + 1):
        if height * vectors + vectors + 1 <= registers:
            sets = _sets(height * vectors, registers - vectors - 1, turns)
            if rows is None or height == max(h for _, h in split(max(rows, 1), height)):
                yield _shared(form, lanes, method, height, 1, sets)


def _sets(sums: int, registers: int, columns: int) -> int:
    """How many sets of ``sums`` accumulators fill the pipeline, and fit; a divisor of a block's columns where it has several."""
    wanted = min(ceil(LATENCY * FMAS / sums), registers // sums)
    return max(n for n in range(1, max(wanted, 1) + 1) if columns == 1 or columns % n == 0)


def _shared(form: Form, lanes: int, method: str, height: int, parts: int, sets: int) -> Plan:
    """The plan with as many shares as make units enough; and that stay in L2 while tiles of rows pass them."""
    plan = Plan(form, lanes, method, height, parts, 1, sets)
    units = prod(e.constant or 1 for e in (plan.form.outer, plan.tiles))
    shares = ceil(UNITS / max(units, 1))
    if method == "blocks":
        shares = max(shares, ceil(4 * form.columns * plan.tile_rows / SUM_BYTES))
    if plan.in_place:
        shares = max(shares, ceil(4 * form.sparsity.elements / NEAR_BYTES))
    return replace(plan, shares=max(min(shares, ceil(form.blocks / plan.group)), 1))
