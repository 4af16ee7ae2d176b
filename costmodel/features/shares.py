"""How evenly threads share a kernel: each takes as many units as another, in order, but units are not all as long."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from effc.costmodel.features.schedules import Numbers

Array = NDArray[np.float64]


def fitted(n: Numbers, squares: Numbers, units: Array, cut: Array, inner_panels: Array) -> dict[str, Array]:
    """What `uneven` needs. ``squares``: `winograd.fitted`; ``cut``: tiles of a line of rows; ``inner_panels``: that follow each other for
    one of them.
    """
    winograd = n["by_winograd"] > 0
    turns = np.where(winograd, squares["blocks"], cut)
    tall = np.where(winograd, n["squares"], np.maximum(n["tall"], 1))
    return {
        "turns": turns,
        "tall_rows": tall,
        "least_rows": np.where(winograd, squares["block_squares"], np.floor(n["tall"] / cut)),
        "taller_tiles": np.where(winograd, 0.0, n["tall"] % cut),
        "inner_panels": inner_panels,
        "shared_rows": units / inner_panels / turns * tall,
    }


def uneven(n: Numbers, active: Array) -> Array:
    """How many times as long as an even share the longest one takes, of so many threads. The first has the fewest units, and the tallest
    tiles of a line of rows; the last has the most units, and what is left of the rows. Tall tiles of depthwise products, whose rows share
    what they read, are hardly longer.
    """
    units, by_rows = n["units"], (n["tiled"] > 0) & (n["wise"] == 0)
    first, last = np.floor(units / active), np.ceil(units / active)
    done, rest = _rows_of(n, first), n["shared_rows"] - _rows_of(n, units - last)
    longest = np.where(by_rows, np.maximum(done, rest) / n["shared_rows"], last / units)
    found: Array = longest * active
    return found


def _rows_of(n: Numbers, units: Array) -> Array:
    """Rows of the first so many units: whole lines, each of a panel, and the first tiles of the next one."""
    turns = units / n["inner_panels"]
    lines = np.floor(turns / n["turns"])
    left = turns - lines * n["turns"]
    of_line = left * n["least_rows"] + np.minimum(left, n["taller_tiles"])
    found: Array = lines * n["tall_rows"] + np.minimum(of_line, n["tall_rows"])
    return found
