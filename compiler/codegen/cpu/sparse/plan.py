"""Sizes of a sparse kernel: its register tile, its blocks and shares, and where its parts lie in memory.

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

from dataclasses import dataclass
from math import ceil

from effc.compiler.codegen.cpu.sparse.band import Band
from effc.compiler.codegen.cpu.sparse.form import LINE, Form
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.expr import Expr, as_expr, const, floordiv
from effc.compiler.ir.spec import Schedule

#: Threads that have scratch memory; pages of it that no thread touches cost nothing.
MOST_THREADS = 32


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


def _lines(words: int) -> int:
    return ceil(words / LINE) * LINE
