"""How much code a kernel has, by a count of what is written out: the learned model predicts how far from it the truth is.

A product has the code of a register tile once for each height that occurs: its steps as often as its loop is unrolled, again for what is
left of the sum and where a long one is cut into chains, and what follows the sum for each vector.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from effc.compiler.ir.spec import Instr
from effc.costmodel.features.schedules import Numbers

Array = NDArray[np.float64]

COLUMNS: tuple[str, ...] = (
    *("log_code", "log_code_steps", "log_code_after", "code_body"),
    *("log_turns", "log_outer_sums", "chain_rest"),
)

#: Machine instructions of one vector, by the kind of instruction; a function is a polynomial.
_EACH: Mapping[str, float] = {
    **dict.fromkeys(("load", "store", "add", "multiply", "divide", "integer"), 1.0),
    **dict.fromkeys(("compare", "convert", "reduce"), 2.0),
    "decode": 4.0,
    "math": 14.0,
}
_LONG_FUNCTION = 28.0
#: Instructions around everything; of a step, a step of another chain, what follows the sum, its masks, and lines fetched ahead: by least
#: squares over traces of Zen 4.
_AROUND, _STEP, _CHAIN_STEP, _AFTER, _MASK, _AHEAD = 120.0, 0.65, 1.2, 0.8, 2.4, 2.0
#: Longest sum that is one chain; steps that are written out.
_ONE_CHAIN, _UNROLL = 192, 4


def chain(taps: int, packed: bool) -> int:
    """Steps of the innermost sum that are one chain, as products are cut: a divisor where there is one, for which no rest has code."""
    usual = 128 if packed else 64
    longest = usual + usual // 2
    if taps <= longest:
        return max(taps, 1)
    return next((n for n in range(longest, usual // 2, -1) if taps % n == 0), usual)


def written(instr: Instr, kind: str) -> float:
    """Machine instructions of one vector."""
    return _LONG_FUNCTION if instr.op == "math.erf" else _EACH.get(kind, 0.0)


def columns(n: Numbers) -> dict[str, Array]:
    """`COLUMNS`, and ``code``: instructions. Turns of the innermost loop and of those around it: LLVM writes out loops of few."""
    taps = np.maximum(n["taps"] / np.maximum(n["step_rate"], 1), 1)
    unrolled = np.minimum(taps, _UNROLL) + np.where(taps > _UNROLL, taps % _UNROLL, 0)
    again = np.where(n["sums"] > _ONE_CHAIN, np.minimum(taps, _UNROLL), 0) * (1 + (n["taps"] % n["chain"] > 0))
    masked = n["column_waste"] > 0
    steps, after = np.zeros_like(taps), np.zeros_like(taps)
    low = np.maximum(np.floor(n["height"]), 1)
    for height, there in ((low, 1.0), (low + 1, np.ceil(n["taller"]))):
        points = height * n["vectors"]
        step = points + np.where(n["wise"] > 0, n["vectors"] + points / 2, n["vectors"] + height * (n["vectors"] > 1))
        steps += there * step * (_STEP * unrolled + _CHAIN_STEP * again)
        fetched = _AHEAD * (np.nan_to_num(n["schedule_touch"]) > 0)
        after += there * points * (_AFTER * n["body"] + _MASK * masked + fetched)
    product = n["contracts"] > 0
    steps, after = np.where(product, steps, 0.0), np.where(product, after, _UNROLL * n["body"])
    return {
        "log_code": _AROUND + steps + after,
        "log_code_steps": steps,
        "log_code_after": after,
        "code_body": n["body"],
        "log_turns": n["chain"] / np.maximum(n["step_rate"], 1) / _UNROLL,
        "log_outer_sums": n["sums"] / np.maximum(n["taps"], 1),
        "chain_rest": n["taps"] % n["chain"],
        "code": _AROUND + steps + after,
    }
