"""How much code a kernel has, by a count of what is written out: the learned model predicts how far from it the truth is.

A product has the code of a register tile (`tile_code`) once for each height that occurs, and where a window reaches beyond a border again.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from effc.compiler.ir.spec import Instr
from effc.costmodel.features import strips, tile_code
from effc.costmodel.features.schedules import Numbers

Array = NDArray[np.float64]

COLUMNS: tuple[str, ...] = (
    *("log_code", "log_code_steps", "log_code_after", "code_body"),
    *("log_turns", "log_outer_sums", "written", "tile_codes", "cut", "parallel_code"),
)

#: Machine instructions of one vector, by the kind of instruction: a comparison and what it selects become one; a store of bfloat16 rounds.
_EACH: Mapping[str, float] = {
    **dict.fromkeys(("load", "add", "multiply", "divide", "integer"), 1.0),
    **dict.fromkeys(("store", "reduce", "convert"), 2.0),
    "compare": 0.5,
    "decode": 4.0,
    "math": 25.0,
}
_OPS: Mapping[str, float] = {"arith.truncf": 4.5, "math.erf": 23.0, "math.sqrt": 1.0, "math.rsqrt": 2.0}
#: Instructions around everything, and of starting threads, where the work is worth two.
_AROUND, _PARALLEL = 35.0, 125.0
#: Of a product of stored blocks, whose lanes are rows or columns; of Winograd's transforms; of a block's further stage.
_STORED_ROWS, _STORED_COLUMNS, _TRANSFORMS, _STAGE = 580.0, 50.0, 170.0, 350.0
#: Of attention: a unit of two vectors of queries, what turning them in registers adds, what is left of a block of keys, and how much of a
#: unit one of a single vector is. Of few queries: all, what is left of a vector of keys, and each channel.
_UNIT, _TURNED, _KEYS_LEFT, _SINGLE = 1150.0, 450.0, 850.0, 0.5
_FEW, _FEW_LEFT, _FEW_CHANNEL = 480.0, 330.0, 1.3
_KEYS = 128


def written(instr: Instr, kind: str) -> float:
    """Machine instructions of one vector."""
    return _OPS.get(instr.op, _EACH.get(kind, 0.0))


def columns(n: Numbers) -> dict[str, Array]:
    """`COLUMNS`."""
    low = np.maximum(np.floor(n["height"]), 1)
    tiles, taller = _tile_codes(n, low), np.ceil(n["taller"])
    steps, after, written = tile_code.instructions(n, low)
    more, further, _ = tile_code.instructions(n, low + 1)
    steps, after = tiles * steps + taller * more, tiles * after + taller * further
    product = n["contracts"] > 0
    steps = np.where(product, steps, 0.0)
    after = np.where(product, after, np.where(n["is_attention"] > 0, _attention(n), strips.instructions(n)))
    stored = np.where(n["by_sparse_columns"] > 0, _STORED_COLUMNS, _STORED_ROWS)
    steps, after = (np.where(n["by_sparse"] > 0, part, made) for part, made in ((stored, steps), (0.0, after)))
    after = after + _TRANSFORMS * (n["by_winograd"] > 0) + _STAGE * n["further_stages"]
    parallel = n["useful_threads"] >= 2
    around = _AROUND * (product | (n["is_attention"] > 0))  # strips are counted with what is around them
    return {
        "log_code": around + _PARALLEL * parallel + steps + after,
        "log_code_steps": steps,
        "log_code_after": after,
        "code_body": n["body"],
        "log_turns": n["loop_turns"],
        "log_outer_sums": n["sums"] / np.maximum(n["taps"], 1),
        "written": written,
        "tile_codes": tiles,
        "cut": (n["sums"] > n["chain"]).astype(float),
        "parallel_code": parallel.astype(float),
    }


def _attention(n: Numbers) -> Array:
    """Instructions of the templates for blocks of queries and for few of them."""
    lanes, keys, channels = n["lanes"], n["columns"], n["sums"]
    few = (n["rows"] <= 4) & (channels % lanes == 0) & (n["columns_out"] % lanes == 0)
    rows = _FEW + _FEW_LEFT * (keys % lanes > 0) + _FEW_CHANNEL * (channels + n["columns_out"])
    left = (n["masked"] > 0) | ((keys > _KEYS) & (keys % _KEYS > 0))
    unit = _UNIT + _TURNED * (channels % lanes == 0) + _KEYS_LEFT * left
    last = (n["rows"] - 1) % (2 * lanes) + 1
    found: Array = np.where(few, rows, unit * (1 + _SINGLE * ((n["rows"] > lanes) & (last <= lanes))))
    return found


def _tile_codes(n: Numbers, height: Array) -> Array:
    """How many tiles of (about) one height have code of their own: at the ends of a line those that lack products; where a border runs
    along other dimensions too, each twice.
    """
    cut = np.maximum(np.ceil(n["tall"] / n["tile_rows"]), 1)
    ends = np.minimum(np.ceil(n["first_rows"] / height) + np.ceil(n["last_rows"] / height), cut)
    found: Array = np.where(ends < cut, ends + 1, ends) * (1 + n["elsewhere"])
    return found
