"""How a schedule fits a kernel: its parameters, what tiles and vectors leave unused on borders, and how much there is for threads to
share.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from effc.costmodel.features import shares, winograd
from effc.costmodel.features.core import Core
from effc.costmodel.features.schedules import METHODS, PARAMETERS, SPARSE, Numbers
from effc.costmodel.features.window import places
from effc.costmodel.hardware import Hardware

Array = NDArray[np.float64]

COLUMNS: tuple[str, ...] = (
    *(f"by_{name}" for name in METHODS),
    *(f"by_sparse_{name}" for name in SPARSE),
    *(f"schedule_{name}" for name in PARAMETERS),
    *("rows_outside", "halved", "stacked"),
    *("tile_vectors", "accumulators", "register_share", "tile_height", "tile_taller"),
    *("column_waste", "unroll_waste", "vector_waste"),
    *("log_tiles", "log_panels", "log_units_per_thread", "thread_waste"),
    *("ratio_panel_l1", "ratio_panel_l2", "ratio_rows_l1", "ratio_rows_l2"),
    *("ratio_left_l2", "ratio_factor_l2", "log_streamed"),
)

#: How much of L1 what a product uses again may take to stay there; the lines of a depthwise window, which are fetched ahead as they are
#: read in turn, with its taps; and the taps alone.
_HELD, _WINDOW, _TAPS = 0.8, 1.9, 0.4


def fitted(n: Numbers, core: Core, hardware: Hardware, threads: int) -> dict[str, Array]:
    """`COLUMNS`, and what `cycles` counts with. ``width``: what lanes run along, the columns, or the batch where there are none (depthwise
    convolutions); ``height``: rows of a register tile, of which ``taller`` is the share that have one more; ``units``: parts of the work
    that threads can share; ``streamed``: bytes that L2 or beyond gives again. Rows are cut evenly: no tile reaches
    beyond the last one.
    """
    tiled = ~np.isnan(n["schedule_mr"])
    mr = np.where(tiled, np.maximum(n["schedule_mr"], 1), 1)
    halved = np.where(n["by_direct"] > 0, n["halved"], 0.0)
    lanes = n["lanes"] * (1 + n["halved"] - halved)
    nr = np.where(tiled, np.maximum(n["schedule_nr"], 1), lanes)
    wise = n["wise"] > 0
    width, batches = np.where(wise, n["batches"], n["columns"]), np.where(wise, 1, n["batches"])
    vectors = np.ceil(nr / lanes)
    lines = np.maximum(n["rows"], 1) / np.maximum(n["tall"], 1)
    cut = np.maximum(np.ceil(n["tall"] / mr), 1)
    height = n["tall"] / cut
    rows, panels = cut * lines, np.maximum(np.ceil(width / nr), 1)
    outside = np.where(rows <= 1, 0.0, n["rows_outside"])  # one tile of rows has the same code in either order
    units = register_tiles = np.maximum(rows * panels * batches, 1)
    each = np.ceil(units / threads)
    unroll = np.maximum(np.nan_to_num(n["schedule_unroll"], nan=1), 1)
    panel = np.where(n["packed"] > 0, n["packed"] / (panels * batches), n["sums"] * nr * n["right_item"])
    block, left = n["sums"] * mr * n["left_item"], n["rows"] * n["sums"] * n["left_item"]
    factor = panel * panels
    sizes = {
        "rows": rows,
        "panels": panels,
        "panel": panel,
        "block": block,
        "left": left,
        "factor": factor,
        "outside": outside,
    }
    again = _streamed(n, sizes, hardware)
    rows_again, panels_again = (batches * n["inside"] * part for part in again)
    direct = np.where(wise, _windows(n, height, rows, hardware), rows_again + panels_again)
    squares = winograd.fitted(n, mr, panels)
    by_winograd = n["by_winograd"] > 0
    product = np.where(by_winograd, winograd.streamed(n, squares, panels, nr, hardware), direct)
    units = np.where(by_winograd, batches * squares["block_units"], units)
    return {
        **{f"by_{name}": n[f"by_{name}"] for name in METHODS},
        **{f"by_sparse_{name}": n[f"by_sparse_{name}"] for name in SPARSE},
        **{f"schedule_{name}": n[f"schedule_{name}"] for name in PARAMETERS},
        "rows_outside": outside,
        "tile_vectors": np.where(tiled, vectors, np.nan),
        "accumulators": np.where(tiled, mr * vectors, np.nan),
        "register_share": np.where(tiled, (mr * vectors + vectors + 1) / core.registers, np.nan),
        "tile_height": np.where(tiled, height, np.nan),
        "tile_taller": np.where(tiled, height % 1, np.nan),
        "column_waste": (panels * nr - width) / np.maximum(width, 1),
        "unroll_waste": -n["sums"] % unroll / np.maximum(n["sums"], 1),
        "vector_waste": -width % lanes / np.maximum(width, 1),
        "log_tiles": rows * panels * batches,
        "log_panels": panels,
        "log_units_per_thread": each,
        "thread_waste": (each * threads - units) / units,
        "ratio_panel_l1": panel / max(hardware.l1, 1),
        "ratio_panel_l2": panel / max(hardware.l2, 1),
        "ratio_rows_l1": block / max(hardware.l1, 1),
        "ratio_rows_l2": block / max(hardware.l2, 1),
        "ratio_left_l2": left / max(hardware.l2, 1),
        "ratio_factor_l2": factor / max(hardware.l2, 1),
        "log_streamed": product,
        "halved": halved,
        "stacked": n["stacked"],
        "lanes": lanes,
        "tiled": tiled.astype(float),
        "height": height,
        "taller": height % 1,
        "tile_rows": mr,
        "tile_columns": nr,
        "vectors": vectors,
        "register_tiles": register_tiles,
        "ahead": ((n["packed"] > 0) & (outside == 0) & (rows > 1)).astype(float),
        "units": units,
        **shares.fitted(n, squares, units, cut, np.where(by_winograd | (outside > 0), panels, 1.0)),
        **squares,
        "streamed": np.where(n["contracts"] > 0, product, 0.0),
        "rows_again": np.where(n["by_winograd"] > 0, 0.0, rows_again),
    }


def _streamed(n: Numbers, size: Mapping[str, Array], hardware: Hardware) -> tuple[Array, Array]:
    """Bytes of rows, and of panels, that come again where L1 does not hold them until then: where row tiles are outside, all panels for
    each, and its rows for each panel; else the rows for each panel, and the panel for each tile.
    """
    held = _HELD * hardware.l1
    panel, block, left, factor = (size[name] for name in ("panel", "block", "left", "factor"))
    by_rows, by_panels = (size["rows"] - 1) * factor, (size["panels"] - 1) * left
    outer = size["outside"] > 0
    rows = np.where(np.where(outer, block, left) + panel <= held, 0.0, by_panels)
    return rows, np.where(np.where(outer, factor, panel) <= held, 0.0, by_rows)


def _windows(n: Numbers, height: Array, tiles: Array, hardware: Hardware) -> Array:
    """Bytes of a depthwise convolution: rows and taps of all channels pass for each tile, unless L1 holds the taps, and the lines of
    a window until the next ones.
    """
    line = n["batches"] * n["left_item"] * n["sums"] / n["taps"]
    apart = np.where(n["stride"] > 0, n["stride"], n["taps"])
    reach = places(n, height)
    held = (apart * (n["tall"] - 1) + n["taps"]) * line
    taps = n["sums"] * n["batches"] * n["right_item"]
    rows = np.where(held + taps <= _WINDOW * hardware.l1, 0.0, tiles * reach * line * n["inside"])
    found: Array = rows + np.where(taps <= _TAPS * hardware.l1, 0.0, tiles * taps * n["inside"])
    return found
