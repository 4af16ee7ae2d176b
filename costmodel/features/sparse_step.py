"""How long a product takes that leaves out the zeros of its constant factor, by what its method does for each stored block.

The methods are those of the template (`compiler/codegen/cpu/sparse/plan.py`), which counts likewise to choose among them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from effc.costmodel.features.core import LATENCY, Core
from effc.costmodel.features.schedules import Numbers

Array = NDArray[np.float64]

#: Loads that start in a cycle, and how many of them a vector at any place counts for. Cycles around a row of blocks, of a vector that is
#: transposed on the way in or out, of one of sums that waits, and of a step beside its arithmetic.
_LOADS, _ANYWHERE = 2, 1.7
_BLOCK, _TURN, _WAITING, _STEP = 12.0, 3.0, 3.0, 0.5


def cycles(n: Numbers, core: Core) -> Array:
    """Of all rows and columns, on one thread."""
    halves = 2 / core.starts
    elements, tall = np.maximum(n["block"], 1), np.maximum(n["block_rows"], 1)
    wide = elements / tall
    height, sets = (np.maximum(np.nan_to_num(n[f"schedule_{name}"], nan=1), 1) for name in ("height", "sets"))
    blocks = n["stored"] * n["columns"] * n["sums"] / elements
    rows_of_blocks = np.ceil(n["columns"] / tall)
    lanes, rows = n["lanes"], n["rows"] * n["batches"]
    vectors = np.ceil(rows / lanes)
    # lanes are columns: a stored block is a step of some vectors of them, for each row of a tile
    across = np.maximum(tall / lanes, 1)
    by_columns = np.maximum(height * across / core.starts, (halves * across + height) / _LOADS)
    by_columns = wide * np.maximum(by_columns, LATENCY / sets) + _STEP
    columns = np.ceil(rows / height) * (blocks * by_columns + rows_of_blocks * _BLOCK)
    # lanes are rows: each element is broadcast; ``blocks`` keeps the vectors that a block meets
    loads = np.where(n["by_sparse_blocks"] > 0, 2 * halves * tall, _ANYWHERE * halves * wide * height) + elements
    by_rows = np.maximum(elements * height / core.starts, loads / _LOADS)
    by_rows = np.maximum(by_rows, LATENCY * wide / sets)
    tiles = np.ceil(vectors / height)
    moved = _TURN * (n["columns"] + n["sums"] / n["taps"]) + _WAITING * n["columns"]
    others = tiles * (blocks * by_rows + rows_of_blocks * _BLOCK) + vectors * moved
    found: Array = np.where((n["by_sparse_columns"] > 0) | (n["by_sparse_dots"] > 0), columns, others)
    return found
