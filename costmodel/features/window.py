"""Places of the image that the rows of a tile read along one line of a window: neighbours share those that their taps meet."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from effc.costmodel.features.schedules import Numbers

Array = NDArray[np.float64]


def places(n: Numbers, rows: Array) -> Array:
    """Of a tile of so many rows, under all taps of the line."""
    apart = np.where(n["stride"] > 0, n["stride"] * (rows - 1) + n["taps"], rows * n["taps"])
    found: Array = np.minimum(apart, rows * n["taps"])
    return found


def places_of_a_tap(n: Numbers, rows: Array) -> Array:
    """The same for each tap, on average."""
    return places(n, rows) / np.maximum(n["taps"], 1)
