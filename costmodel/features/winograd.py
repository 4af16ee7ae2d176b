"""Winograd's F(2x2, 3x3) as its template computes it: by blocks of squares of 2x2 outputs, under each panel of columns in turn.

A block's input is transformed to 16 planes of squares x channels, each of them multiplied with its plane of the panel, and the sums are
transformed back.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from effc.costmodel.features.core import LATENCY, Core
from effc.costmodel.features.schedules import Numbers
from effc.costmodel.hardware import Hardware

Array = NDArray[np.float64]

#: Products of a square, each a position, and taps that they stand for; cycles of its transforms, of a vector, and around a register tile.
_POSITIONS, _TAPS, _TRANSFORMS, _TILE = 16, 9, (26.0, 22.0), 2.5
#: How many loads one of the right factor counts for, and a broadcast element of the left one; loads that start in a cycle.
_RIGHT, _BROADCAST, _LOADS = 1.3, 0.95, 2
#: Shares of a cache that a plane of a panel, and all of the kernel, may take to stay there.
_HELD, _USABLE = 0.8, 0.6


def fitted(n: Numbers, tile_rows: Array, panels: Array) -> dict[str, Array]:
    """Of a group of channels: ``blocks``, each of ``block_squares``; ``block_rows_of_tiles``, of register tiles of all blocks, where
    squares past the last one are computed too; ``block_units``, blocks under panels, that threads share.
    """
    tiles = np.maximum(np.nan_to_num(n["schedule_tiles"], nan=1), 1)
    blocks = np.maximum(np.ceil(n["squares"] / tiles), 1)
    left = n["squares"] - (blocks - 1) * tiles
    rows = (blocks - 1) * np.ceil(tiles / tile_rows) + np.ceil(left / tile_rows)
    return {"blocks": blocks, "block_rows_of_tiles": rows, "block_squares": tiles, "block_units": blocks * panels}


def streamed(n: Numbers, made: Numbers, panels: Array, columns: Array, hardware: Hardware) -> Array:
    """Bytes that come from L2: each block's planes and sums under each panel, and the panel, for each row of tiles where L1 does not hold a
    plane of it. A kernel that L2 does not hold comes from beyond for each block.
    """
    depth, blocks = n["sums"] / _TAPS, made["blocks"]
    plane = depth * columns * n["right_item"]
    times = np.where(plane <= _HELD * hardware.l1, blocks, made["block_rows_of_tiles"])
    squares = n["squares"] * (depth + 2 * columns) * n["right_item"]
    near = _POSITIONS * panels * (plane * times + squares) * n["batches"]
    outside = np.where(n["packed"] <= _USABLE * hardware.l2, 0.0, (blocks - 1) * n["packed"])
    found: Array = near + outside * hardware.caches[1] / max(hardware.caches[2], 1.0)
    return found


def cycles(n: Numbers, core: Core) -> Array:
    """Of the products and the transforms, on one thread."""
    depth, vectors = n["sums"] / _TAPS, n["vectors"]
    loads = (2 / core.starts * _RIGHT * vectors + _BROADCAST * n["tile_rows"]) / _LOADS
    multiplies = np.maximum(np.maximum(n["tile_rows"] * vectors / core.starts, loads), LATENCY)
    products = _POSITIONS * n["block_rows_of_tiles"] * n["log_panels"] * (depth * multiplies + _TILE)
    each = depth * _TRANSFORMS[0] + n["columns"] * _TRANSFORMS[1]
    found: Array = n["batches"] * (products + n["squares"] * each / n["lanes"] * 2 / core.starts)
    return found
