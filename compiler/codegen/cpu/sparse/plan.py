"""Sizes of a sparse kernel: its register tile, its blocks and shares, where its parts lie in memory; and what it would cost.

Five methods. ``rows``: lanes are rows of the dense factor; an element of the sparse one is a broadcast; the columns come one after the
other (Elsen, Dukhan, Gale, Simonyan: "Fast Sparse ConvNets", CVPR 2020). It takes any blocks. ``blocks``: likewise, but the columns of a
block of the sum come one after the other: a vector of rows of it stays in registers, and only the sums move. It takes blocks of several
elements of the sum. ``columns``: lanes are columns, as in the dense kernel, and a panel has a list of the steps of the sum that it
stores. It takes blocks whose rows fill vectors. ``dots``: lanes are the elements of a block along the sum, and each sum is a vector that is
folded at its end. It takes blocks of one row whose columns fill vectors.

A convolution's window is a longer sum to ``columns`` and ``dots``: stored blocks say where their channels are in the image. ``window`` is
``rows`` for it, with a band of the image in scratch memory (`band`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil, prod

from effc.compiler.codegen.cpu.contraction.rows import split
from effc.compiler.codegen.cpu.sparse.band import Band
from effc.compiler.codegen.cpu.sparse.form import LINE, Form
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.expr import Expr, as_expr, const, floordiv
from effc.compiler.ir.spec import Schedule

#: Threads that have scratch memory; pages of it that no thread touches cost nothing.
MOST_THREADS = 32
#: Units that a kernel is cut into at least, where there are as many: two threads are then even within an eighth.
UNITS = 8
#: Rows taken for a number that is known only at run time.
UNKNOWN = 256
#: Bytes of stored elements that a unit of the ``columns`` method walks through for every tile of rows: they stay in L2.
NEAR_BYTES = 384 * 1024
#: Bytes of the dense factor's tile that stay in the first-level cache.
L1_BYTES = 40 * 1024
#: Bytes of the sums of a share that stay there while the sum is walked (``blocks``).
SUM_BYTES = 16 * 1024
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
#: Elements of the sum in a block from which on its rows are worth their registers, and sums that then grow side by side.
LEAST_COLUMNS, BLOCK_CHAINS = 4, 4


@dataclass(frozen=True)
class Plan:
    """``method``: see the module. ``height``: vectors of rows of a tile, or rows (``columns``). ``parts``: of the sum, of which one is
    walked for all columns before the next. ``shares``: runs of columns with about as many stored blocks. ``sets``: accumulators that
    take turns, so that one does not wait for its last addition; of as many blocks (``blocks``).
    """

    form: Form
    lanes: int
    method: str
    height: int
    parts: int
    shares: int
    sets: int

    @staticmethod
    def of(form: Form, schedule: Schedule, target: Target) -> Plan:
        method = str(schedule["sparse"])
        bands = Band.of(form) if method == "window" else None
        return Plan(
            form if bands is None else bands.form, target.lanes(4), method, int(schedule["height"]), int(schedule["parts"]),
            int(schedule["shares"]), int(schedule["sets"]),
        )  # fmt: skip

    @property
    def schedule(self) -> Schedule:
        return Schedule((
            ("height", self.height), ("parts", self.parts), ("sets", self.sets), ("shares", self.shares), ("sparse", self.method),
        ))  # fmt: skip

    # -- the packed factor, in words of four bytes ------------------------------------------------------------------
    @property
    def part_length(self) -> int:
        """Elements of the sum in one part: whole blocks."""
        columns = self.form.sparsity.columns
        return ceil(ceil(self.form.sum / columns) / self.parts) * columns

    @property
    def listed_by(self) -> str:
        """Whether the stored blocks of a part have a list for each of the ``rows`` of blocks, or for each of the ``runs`` of them."""
        return "runs" if self.method == "blocks" else "rows"

    @property
    def bands(self) -> Band:
        found = Band.of(self.form)
        assert found is not None, "plans by windows are offered where there are bands"
        return found

    @property
    def taps(self) -> tuple[int, ...]:
        """Where the packed factor says that the positions of the window are, from that of the first."""
        return self.bands.taps if self.method == "window" else self.form.taps

    @property
    def step(self) -> int | None:
        """Elements between neighbouring channels where the dense factor is read. None: known at run time only, or too many for what the
        packed factor says in 32 bits.
        """
        if self.method == "window":
            return self.bands.plane
        step = self.tile_rows if self.staged else self.form.step.constant
        return step if step is not None and step * self.form.sum < 2**31 else None

    @property
    def _said_step(self) -> int:
        """Of the places that the packed factor says of blocks: between channels, or (``blocks``) between the sums of rows of blocks."""
        if self.method == "blocks":
            return self.form.sparsity.rows * self.tile_rows
        return 1 if self.step is None else self.step

    @property
    def group(self) -> int:
        """Rows of blocks whose columns fill a vector: runs are whole groups, but for the last."""
        return max(self.lanes // self.form.sparsity.rows, 1)

    @property
    def width(self) -> int:
        """Elements of the sum that one addition takes of a block, each in a lane of its own."""
        return self.lanes if self.method == "dots" else 1

    @property
    def turns(self) -> int:
        """Additions that a block takes."""
        return self.form.sparsity.columns // self.width

    @property
    def starts_at(self) -> int:
        """Where the first stored block of each list is said, part by part, and the end of the last."""
        return _lines(self.shares + 1)

    @property
    def indices_at(self) -> int:
        lists = self.form.blocks if self.listed_by == "rows" else self.shares
        return self.starts_at + _lines(self.parts * lists + 1)

    @property
    def values_at(self) -> int:
        return self.indices_at + _lines(self.form.sparsity.stored)

    @property
    def packed_elements(self) -> int:
        return self.values_at + _lines(self.form.sparsity.elements)

    # -- scratch memory, in elements --------------------------------------------------------------------------------
    @property
    def in_place(self) -> bool:
        """Whether the dense factor is read where it lies, row by row."""
        return self.method in ("columns", "dots")

    @property
    def tile_rows(self) -> int:
        return self.height if self.in_place else self.height * self.lanes

    @property
    def staged(self) -> bool:
        """Whether a tile of the dense factor is transposed into scratch memory, or copied there: vectors that cross cache lines take two
        loads, and lines that lie a multiple of 1 KiB apart share few sets of the first-level cache.
        """
        if self.method == "window":
            return True
        if self.in_place or (self.method == "blocks" and self.form.planes):
            return False
        step = self.form.step.constant
        return not self.form.planes or step is None or step % LINE != 0 or step % (16 * LINE) == 0

    @property
    def waits(self) -> bool:
        """Whether sums wait in scratch memory, for further parts or to be transposed."""
        return self.method in ("blocks", "window") or (
            self.method == "rows" and (self.parts > 1 or self.form.by_columns)
        )

    @property
    def rest(self) -> int:
        """Lanes of a vector of the last rows, where it is summed from scratch memory into scratch memory: half of 16 may do."""
        rows = self.form.rows.constant
        half = self.lanes == 16 and self.staged and self.waits and rows is not None and 0 < rows % 16 <= 8
        return 8 if half else self.lanes

    @property
    def staged_elements(self) -> int:
        if self.method == "window":  # the last tile reads beyond the last plane
            return self.bands.elements + self.tile_rows
        return self.form.sum * self.tile_rows if self.staged else 0

    @property
    def share_elements(self) -> int:
        """Scratch memory of one thread: the staged tile; and the sums of all columns, to whole vectors of them, or of a group."""
        blocks = self.group if self.method != "blocks" and self.parts == 1 else self.form.blocks
        columns = _lines(blocks * self.form.sparsity.rows) + LINE
        return self.staged_elements + (columns * self.tile_rows if self.waits else 0)

    @property
    def scratch_elements(self) -> int:
        return MOST_THREADS * self.share_elements

    def derivation(self, offset: int) -> tuple[str, dict[str, object]]:
        """The function of ``runtime/derive.py`` that packs the factor, which lies at ``offset``, and its attributes."""
        sparsity = self.form.sparsity
        return "sparse_panels", {
            "offset": offset,
            "sizes": self.form.sizes,
            "strides": self.form.strides,
            "block": (sparsity.rows, sparsity.columns),
            "stored": sparsity.stored,
            "length": self.part_length,
            "shares": self.shares,
            "by": self.listed_by,
            "group": self.group,
            "places": (self.starts_at, self.indices_at, self.values_at, self.packed_elements),
            "taps": self.taps,
            "step": self._said_step,
        }

    # -- units ------------------------------------------------------------------------------------------------------
    @property
    def unit_rows(self) -> int:
        """Rows of a unit, or lines of outputs of a band."""
        return self.bands.lines if self.method == "window" else self.tile_rows

    @property
    def tiles(self) -> Expr:
        """Tiles of rows, or bands, of one index of the outer dims."""
        if self.method == "window":
            return const(self.bands.count)
        return floordiv(self.form.rows + (self.tile_rows - 1), as_expr(self.tile_rows))

    @property
    def unit_cycles(self) -> int:
        return int(_tile_cycles(self, self.height)) // self.shares + 1


def plans(form: Form, target: Target) -> list[Plan]:
    """All that are worth trying, the cheapest first."""
    return sorted(_offered(form, target), key=lambda p: (estimate(p), p.parts, p.height))


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


def _tile_cycles(plan: Plan, height: int) -> float:
    """Of a tile of ``height`` vectors of rows, or rows, or of a band in such tiles, and all columns."""
    form, sparsity = plan.form, plan.form.sparsity
    if plan.method == "columns":
        vectors = sparsity.rows // plan.lanes
        sums = height * vectors
        step = max(sums / FMAS, (height + vectors) / LOADS, LATENCY / plan.sets) + _crowding(form, height)
        return sparsity.stored * (sparsity.columns * step + 0.5) + form.blocks * (BLOCK_CYCLES + 2 * sums)
    if plan.method == "dots":
        far = FAR * max(0.0, 1 - L1_BYTES / (4 * form.met(height)[0]))
        step = max(height / FMAS, (height + 1) / LOADS + far * height, LATENCY / plan.sets) + _crowding(form, height)
        return sparsity.stored * (plan.turns * step + 0.5) + form.columns * (BLOCK_CYCLES + FOLD_CYCLES * height)
    points = sparsity.columns * sparsity.rows
    moved = (form.columns if form.by_columns else 0) + (0 if form.planes else form.sum)
    if plan.method == "blocks":
        step = max((points + sparsity.rows) / FMAS, (points + 2 * sparsity.rows) / LOADS)
        lists = plan.parts * plan.shares * height * (BLOCK_CYCLES + sparsity.columns)
        streamed = STREAM_CYCLES * sparsity.elements / LINE if 4 * sparsity.elements > STREAM_BYTES else 0.0
        passes = 2 * form.blocks * sparsity.rows * height * NEAR_CYCLES
        return sparsity.stored * step * height + lists + streamed + passes + moved * height * TURN_CYCLES
    near = plan.part_length * height * plan.lanes
    if plan.method == "window":
        near = plan.bands.near(plan.tile_rows, plan.parts)
    crossing = UNALIGNED if plan.method == "window" else 1
    far = FAR * max(0.0, 1 - L1_BYTES / (4 * near))
    step = max(
        points * height / FMAS,
        (sparsity.columns * height * crossing + points + (1 if plan.sets % 2 else 0.5)) / LOADS
        + far * sparsity.columns * height,
        LATENCY * sparsity.columns / plan.sets,
    )
    sums = form.blocks * sparsity.rows * height
    passes = 2 * (plan.parts - 1) * WAITING_CYCLES + (2 * NEAR_CYCLES if plan.waits else WAITING_CYCLES)
    cycles = sparsity.stored * step + plan.parts * form.blocks * BLOCK_CYCLES + passes * sums
    if plan.method == "window":
        bands = plan.bands
        staged = ceil(bands.pixels / plan.lanes) * form.sizes[-1] * TURN_CYCLES
        return staged + ceil(bands.outputs / plan.tile_rows) * (cycles + height * form.columns * WRITE_CYCLES)
    copied = form.sum if plan.staged and form.planes else 0
    return cycles + height * (moved * TURN_CYCLES + copied * COPY_CYCLES)


def _crowding(form: Form, rows: int) -> float:
    """Cycles of a step of so many rows whose lines do not stay in the first-level cache, as they share its sets."""
    return CROWDED * rows if form.met(rows)[1] > MOST_LINES else 0.0


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


def _lines(words: int) -> int:
    return ceil(words / LINE) * LINE
