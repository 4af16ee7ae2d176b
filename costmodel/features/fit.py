"""How a schedule fits a kernel: its parameters, what of tiles and vectors is wasted on borders, and how much there is for threads to
share.
"""

from __future__ import annotations

from dataclasses import dataclass

from effc.compiler.ir.spec import KernelSpec, Schedule
from effc.costmodel.features.nest import Sizes
from effc.costmodel.features.scale import NAN, log, ratio, share
from effc.costmodel.hardware import Hardware

#: Methods of a contraction, by the parameter of the schedule that names one, and its value where there are several.
_METHODS = ("direct", "winograd", "sparse", "skip")
_SPARSE = ("rows", "blocks", "columns", "dots", "groups", "window")
#: Parameters that are numbers; each is a column, NaN where the schedule has none.
_PARAMETERS = ("mr", "nr", "unroll", "touch", "tiles", "width", "lanes", "vector")

COLUMNS: tuple[str, ...] = (
    *(f"by_{name}" for name in _METHODS),
    *(f"by_sparse_{name}" for name in _SPARSE),
    *(f"schedule_{name}" for name in _PARAMETERS),
    "rows_outside",
    *("tile_vectors", "accumulators", "register_share"),
    *("row_waste", "column_waste", "unroll_waste", "vector_waste"),
    *("log_tiles", "log_panels", "log_units_per_thread", "thread_waste"),
    *("panel_in_l1", "panel_in_l2", "rows_in_l1", "rows_in_l2", "log_streamed"),
)


@dataclass(frozen=True)
class Fit:
    """``padded``: points computed over points needed; ``streamed``: bytes of factors that pass from L2 or beyond, with repeats."""

    sizes: Sizes
    schedule: Schedule
    hardware: Hardware
    threads: int
    lanes: int
    tile: tuple[int, int]

    @staticmethod
    def of(spec: KernelSpec, sizes: Sizes, hardware: Hardware, threads: int) -> Fit:
        """Of a chain by the schedule of its stage with the most work; without a tile, a row of one vector."""
        schedule = spec.schedule
        if spec.stages:
            schedule = max(spec.stages, key=lambda s: len(s.schedule.parameters)).schedule
        parameters = dict(schedule.parameters)
        item = max(sizes.items[1] or sizes.items[0], 1)
        lanes = max(hardware.vector_bytes // max(item, 4), 1)  # low precision is summed in 4 bytes
        rows, columns = parameters.get("mr", 1), parameters.get("nr", lanes)
        return Fit(sizes, schedule, hardware, threads, lanes, (int(rows) or 1, int(columns) or 1))

    @property
    def grid(self) -> tuple[int, int]:
        """Tiles along the rows and along the columns."""
        return -(-self.sizes.rows // self.tile[0]), -(-self._width // self.tile[1])

    @property
    def _width(self) -> int:
        """Of what lanes run along: columns, or the batch where there are none (depthwise convolutions)."""
        return self.sizes.columns if self.sizes.columns > 1 else self.sizes.batches

    @property
    def units(self) -> int:
        """Parts of the work that threads can share."""
        rows, columns = self.grid
        return max(rows * columns * (self.sizes.batches if self.sizes.columns > 1 else 1), 1)

    @property
    def padded(self) -> float:
        rows, columns = self.grid
        needed = max(self.sizes.rows * self._width, 1)
        return max(rows * self.tile[0] * columns * self.tile[1] / needed, 1.0)

    @property
    def streamed(self) -> float:
        """Of a product; where row tiles are outside, each reads all columns again, else each panel all rows."""
        left_item, right_item = self.sizes.items
        rows, columns = self.grid
        left = self.sizes.rows * self.sizes.sums * left_item
        right = self.sizes.columns * self.sizes.sums * right_item * self.sizes.stored
        if self.schedule.get("order") == "rows":
            return self.sizes.batches * (left + rows * right)
        return self.sizes.batches * (columns * left + right)

    def row(self) -> list[float]:
        """In the order of `COLUMNS`."""
        parameters, host, sizes = dict(self.schedule.parameters), self.hardware, self.sizes
        method = next((name for name in _METHODS if parameters.get(name)), "direct")
        numbers = [parameters.get(name) for name in _PARAMETERS]
        mr, nr = self.tile
        vectors = -(-nr // self.lanes)
        registers = 32 if host.vector_bytes == 64 else 16
        tiled = "mr" in parameters
        rows, columns = self.grid
        each = -(-self.units // self.threads)
        unroll = max(int(parameters.get("unroll", 1)), 1)
        panel = sizes.sums * nr * sizes.items[1]
        block = sizes.sums * mr * sizes.items[0]
        return [
            *(float(method == name) for name in _METHODS),
            *(float(parameters.get("sparse") == name) for name in _SPARSE),
            *(float(n) if isinstance(n, int) else NAN for n in numbers),
            float(parameters.get("order") == "rows"),
            float(vectors) if tiled else NAN,
            float(mr * vectors) if tiled else NAN,
            (mr * vectors + vectors + 1) / registers if tiled else NAN,
            share(rows * mr - sizes.rows, sizes.rows),
            share(columns * nr - self._width, self._width),
            share(-sizes.sums % unroll, sizes.sums),
            share(-self._width % self.lanes, self._width),
            log(rows * columns * sizes.batches),
            log(columns),
            log(each),
            share(each * self.threads - self.units, self.units),
            ratio(panel, host.l1),
            ratio(panel, host.l2),
            ratio(block, host.l1),
            ratio(block, host.l2),
            log(self.streamed),
        ]
