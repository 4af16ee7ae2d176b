"""How much code a kernel has, by a count of what is written out: the learned model predicts how far from it the truth is.

A product has the code of a register tile once for each height that occurs: its steps as often as its loop is unrolled, again for what is
left of the sum and where a long one is cut into chains, and what follows the sum for each vector.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from effc.compiler.ir.spec import Instr
from effc.costmodel.features import strips
from effc.costmodel.features.schedules import Numbers

Array = NDArray[np.float64]

COLUMNS: tuple[str, ...] = (
    *("log_code", "log_code_steps", "log_code_after", "code_body"),
    *("log_turns", "log_outer_sums", "written", "tile_codes", "cut"),
)

#: Machine instructions of one vector, by the kind of instruction; a function is a polynomial.
_EACH: Mapping[str, float] = {
    **dict.fromkeys(("load", "store", "add", "multiply", "divide", "integer"), 1.0),
    **dict.fromkeys(("compare", "convert", "reduce"), 2.0),
    "decode": 4.0,
    "math": 14.0,
}
_LONG_FUNCTION = 28.0
#: Instructions around everything, and around a tile of one height; of a step a product, a load, an element that is converted, and what is
#: fetched ahead; of each vector of a tile what follows its sum, its mask, a line that is fetched, and what joins chains: by least squares
#: over traces of Zen 4. Of depthwise convolutions, whose steps LLVM keeps in registers, a load of a step and each vector.
_AROUND, _TILE, _PRODUCT, _LOAD, _CONVERT, _AHEAD = 120.0, 43.0, 0.75, 0.95, 1.8, 1.9
_AFTER, _MASK, _LINE, _JOIN = 0.78, 1.6, 2.1, 5.4
_WISE_LOAD, _WISE_POINT, _WISE_MASK = 0.5, 6.7, 4.5
#: Of attention: a unit of two vectors of queries, what turning them in registers adds, what is left of a block of keys, and how much of a
#: unit one of a single vector is. Of few queries: all, what is left of a vector of keys, and each channel.
_UNIT, _TURNED, _KEYS_LEFT, _SINGLE = 1150.0, 450.0, 850.0, 0.5
_FEW, _FEW_LEFT, _FEW_CHANNEL = 480.0, 330.0, 1.3
_KEYS = 128


def written(instr: Instr, kind: str) -> float:
    """Machine instructions of one vector."""
    return _LONG_FUNCTION if instr.op == "math.erf" else _EACH.get(kind, 0.0)


def columns(n: Numbers) -> dict[str, Array]:
    """`COLUMNS`. Turns of the innermost loop and of those around it: LLVM writes out loops of few."""
    low = np.maximum(np.floor(n["height"]), 1)
    steps, after = np.zeros_like(low), np.zeros_like(low)
    tiles = _tile_codes(n, low)
    for height, copies in ((low, tiles), (low + 1, np.ceil(n["taller"]))):
        made, follows = _tile(n, height)
        steps, after = steps + copies * made, after + copies * follows
    product = n["contracts"] > 0
    steps = np.where(product, steps, 0.0)
    after = np.where(product, after, np.where(n["is_attention"] > 0, _attention(n), strips.instructions(n)))
    around = np.where(product | (n["is_attention"] > 0), _AROUND, 0.0)  # strips are counted with what is around them
    return {
        "log_code": around + steps + after,
        "log_code_steps": steps,
        "log_code_after": after,
        "code_body": n["body"],
        "log_turns": n["chain"] / np.maximum(n["step_rate"] * n["written"], 1),
        "log_outer_sums": n["sums"] / np.maximum(n["taps"], 1),
        "written": n["written"],
        "tile_codes": tiles,
        "cut": (n["sums"] > n["chain"]).astype(float),
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


def _tile(n: Numbers, height: Array) -> tuple[Array, Array]:
    """Instructions of a tile's steps, and of what follows them."""
    points = height * n["vectors"]
    masks = points * (n["column_waste"] > 0)
    loads = np.where(n["vectors"] > 1, n["vectors"] + height, n["vectors"])
    ahead = _AHEAD * ((n["rows_outside"] == 0) & (n["packed"] > 0))
    steps = n["written"] * (_PRODUCT * points + (_LOAD + _CONVERT * n["converts"]) * loads + ahead)
    lines = _LINE * (np.nan_to_num(n["schedule_touch"]) > 0) + _JOIN * (n["sums"] > n["chain"])
    after = _TILE + points * (_AFTER * n["body"] + lines) + _MASK * masks
    wise = n["written"] * _WISE_LOAD * (n["vectors"] + points / 2)
    wise_after = _TILE + points * (_AFTER * n["body"] + _WISE_POINT) + _WISE_MASK * masks
    return np.where(n["wise"] > 0, wise, steps), np.where(n["wise"] > 0, wise_after, after)
