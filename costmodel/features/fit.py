"""How a schedule fits a kernel: its parameters, what of tiles and vectors is wasted on borders, and how much there is for threads to
share.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from effc.compiler.ir.spec import KernelSpec
from effc.costmodel.features.nest import Sizes
from effc.costmodel.features.scale import NAN, share
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
    *("ratio_panel_l1", "ratio_panel_l2", "ratio_rows_l1", "ratio_rows_l2", "log_streamed"),
)


@dataclass(frozen=True)
class Fit:
    """``tile``: rows and columns of one; ``grid``: tiles along the rows and along ``width``, which lanes run along: the columns, or the
    batch where there are none (depthwise convolutions); ``units``: parts of the work that threads can share; ``padded``: points
    computed over points needed; ``streamed``: bytes of factors that pass from L2 or beyond, with repeats.
    """

    sizes: Sizes
    parameters: Mapping[str, int | str]
    hardware: Hardware
    threads: int
    lanes: int
    tile: tuple[int, int]
    width: int
    grid: tuple[int, int]
    units: int
    padded: float
    streamed: float

    @staticmethod
    def of(spec: KernelSpec, sizes: Sizes, hardware: Hardware, threads: int) -> Fit:
        """Of a block by the stage that ``sizes`` are of; without a tile, a row of one vector."""
        parameters = dict((spec.stages[sizes.stage] if spec.stages else spec).schedule.parameters)
        item = max(sizes.items[1] or sizes.items[0], 4)  # low precision is summed in 4 bytes
        lanes = max(hardware.vector_bytes // item, 1)
        mr, nr = int(parameters.get("mr", 1)) or 1, int(parameters.get("nr", lanes)) or 1
        wise = sizes.columns <= 1
        width = sizes.batches if wise else sizes.columns
        rows, columns = -(-sizes.rows // mr), -(-width // nr)
        return Fit(
            sizes,
            parameters,
            hardware,
            threads,
            lanes,
            (mr, nr),
            width,
            (rows, columns),
            units=max(rows * columns * (1 if wise else sizes.batches), 1),
            padded=max(rows * mr * columns * nr / max(sizes.rows * width, 1), 1.0),
            streamed=_streamed(sizes, rows, columns, parameters.get("order") == "rows"),
        )

    def row(self) -> list[float]:
        """In the order of `COLUMNS`."""
        parameters, host, sizes, width = self.parameters, self.hardware, self.sizes, self.width
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
            share(columns * nr - width, width),
            share(-sizes.sums % unroll, sizes.sums),
            share(-width % self.lanes, width),
            rows * columns * sizes.batches,
            columns,
            each,
            share(each * self.threads - self.units, self.units),
            share(panel, host.l1),
            share(panel, host.l2),
            share(block, host.l1),
            share(block, host.l2),
            self.streamed,
        ]


def _streamed(sizes: Sizes, rows: int, columns: int, rows_outside: bool) -> float:
    """Where row tiles are outside, each reads all columns again, else each panel all rows."""
    left = sizes.rows * sizes.sums * sizes.items[0]
    right = sizes.columns * sizes.sums * sizes.items[1] * sizes.stored
    return sizes.batches * (left + rows * right if rows_outside else columns * left + right)
