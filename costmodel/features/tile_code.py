"""How much code a register tile of a product has: its steps, as often as they are written out, and what follows them.

`terms` counts what there is of each kind; how many instructions one of a kind is was found by least squares over traces of Zen 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from effc.costmodel.features.schedules import Numbers
from effc.costmodel.features.unrolled import repeated, whole
from effc.costmodel.features.window import places_of_a_tap

Array = NDArray[np.float64]

#: Instructions of one of each of `terms`, of a product's tile.
_PRODUCT: Mapping[str, float] = {
    "product": 0.8,
    "pair": 0.45,
    "broadcast": 0.9,
    "column": 1.5,
    "masked": 1.35,
    "row_converted": 3.3,
    "column_converted": 1.9,
    "ahead": 0.95,
    "joined": 3.2,
    "loop": 15.0,
    "after": 1.0,
    "line": 1.1,
    "mask": 1.2,
}
#: The same of a depthwise convolution's, whose rows are vectors too.
_WISE: Mapping[str, float] = {
    "product": 1.3,
    "row": 0.25,
    "interleaved": 2.6,
    "column": 0.3,
    "masked": 1.25,
    "loop": 15.0,
    "tile": 22.0,
    "after": 0.3,
    "point": 0.65,
    "mask": 0.7,
}
#: Instructions of LLVM's of a broadcast element; of a loop that stays one.
_BROADCAST, _STAYS = 3.0, 4.0


@dataclass(frozen=True)
class _Written:
    """Steps of the sum that the code has when LLVM decides which loops are written out whole, and in the end (``copies``); sums of chains
    that are ``joined``, ``loops`` that stay, and whether there is one.
    """

    steps: Array
    copies: Array
    joined: Array
    loops: Array
    holds: NDArray[np.bool_]

    @staticmethod
    def of(steps: Array) -> _Written:
        nothing = np.zeros_like(steps)
        return _Written(steps, steps, nothing, nothing, nothing > 0)

    def __add__(self, other: _Written) -> _Written:
        return _Written(
            self.steps + other.steps,
            self.copies + other.copies,
            self.joined + other.joined,
            self.loops + other.loops,
            self.holds | other.holds,
        )

    def joining(self, where: NDArray[np.bool_]) -> _Written:
        """With its sum added to that of other chains."""
        return _Written(self.steps, self.copies, self.joined + where, self.loops, self.holds)

    def looped(self, turns: Array, step: Array, join: Array) -> _Written:
        """In a loop. ``step``, ``join``: LLVM's instructions of a step, and of adding a chain's sums."""
        if (turns == 1).all():
            return self
        size = self.steps * step + self.joined * join + self.loops * _STAYS
        times = whole(size, turns)
        stays = (turns > 1) & (times == 1)
        innermost = np.flatnonzero(stays & ~self.holds)
        again = np.ones_like(size)
        again[innermost] = repeated(size[innermost], turns[innermost])
        return _Written(
            self.steps * times,
            self.copies * times * again,
            self.joined * times * again,
            self.loops * times + stays,
            self.holds | stays,
        )


def instructions(n: Numbers, height: Array) -> tuple[Array, Array, Array]:
    """Of the steps of a tile of ``height`` rows, and of what follows them; and how many steps the code has."""
    wise, written = n["wise"] > 0, _written(n, height)
    found = terms(n, height, written)
    steps, after = (
        sum(np.where(wise, _WISE.get(name, 0.0), _PRODUCT.get(name, 0.0)) * found[name] for name in names)
        for names in (_IN_STEPS, _AFTER)
    )
    return np.asarray(steps), np.asarray(after), written.copies


_IN_STEPS = (
    *("product", "pair", "broadcast", "row", "interleaved", "column", "masked", "row_converted", "column_converted"),
    *("ahead", "joined", "loop"),
)
_AFTER = ("tile", "after", "point", "line", "mask")


def terms(n: Numbers, height: Array, written: _Written) -> dict[str, Array]:
    """What a tile of ``height`` rows has of each kind: in its steps (`_IN_STEPS`) and after them (`_AFTER`)."""
    wise, vectors = n["wise"] > 0, n["vectors"]
    points, elements = height * vectors, np.where(wise, 0.0, height)
    pairs, converts = n["step_rate"] > 1, n["converts"] * ~wise
    steps = written.copies
    return {
        "product": steps * points,
        "pair": steps * points * pairs,
        "broadcast": steps * elements * ((vectors > 1) | pairs),  # the only one is an operand of its product
        "row": steps * _rows(n, height) * (n["stacked"] <= 1),
        "interleaved": steps * _rows(n, height) * (n["stacked"] > 1),
        "column": steps * vectors * ((height > 1) | wise),
        "masked": steps * vectors * _masked(n),
        "row_converted": steps * elements * converts,
        "column_converted": steps * vectors * converts,
        "ahead": steps * n["ahead"],
        "joined": written.joined * points,
        "loop": written.loops,
        "tile": np.ones_like(height),
        "after": points * n["body"],
        "point": points,
        "line": points * (np.nan_to_num(n["schedule_touch"]) > 0),
        "mask": points * (n["column_waste"] > 0),
    }


def _rows(n: Numbers, height: Array) -> Array:
    """Vectors of rows of a window for each of its taps."""
    return np.where(n["wise"] > 0, n["vectors"] * places_of_a_tap(n, height), 0.0)


def _masked(n: Numbers) -> NDArray[np.bool_]:
    """Whether vectors of columns are loaded under a mask."""
    found: NDArray[np.bool_] = (n["column_waste"] > 0) & ((n["wise"] > 0) | (n["packed"] == 0))
    return found


def _written(n: Numbers, height: Array) -> _Written:
    """The loops of a tile, by `chains.LOOPS`, as LLVM leaves them."""
    wise, vectors = n["wise"] > 0, n["vectors"]
    join = height * vectors
    columns = vectors * (1 + (_masked(n) & ~wise))
    elements = np.where(wise, 0.0, height)
    step = join + _rows(n, height) + columns + _BROADCAST * elements
    step = step + n["converts"] * ~wise * (2 * vectors + height)

    def piece(prefix: str) -> _Written:
        body, turns, left, middle, around = (
            n[f"{prefix}_{name}"] for name in ("body", "turns", "left", "middle", "middle_outer")
        )
        inner = _Written.of(body).looped(turns, step, join) + _Written.of(left)
        return inner.looped(middle, step, join).looped(around, step, join)

    found = piece("loop").joining(n["loop_chains"] > 1).looped(n["loop_chains"], step, join)
    found += piece("rest").joining(n["rest_body"] + n["rest_left"] > 0)
    return found.looped(n["loop_outer"], step, join).looped(n["loop_outermost"], step, join)
