"""How long one step of the sum of a register tile takes: its multiply-adds, its loads, or the latency of a chain of sums."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from effc.costmodel.features.core import LATENCY, Core
from effc.costmodel.features.schedules import Numbers
from effc.costmodel.features.window import places_of_a_tap

Array = NDArray[np.float64]


@dataclass(frozen=True)
class _Pace:
    """What differs between AVX-512 and less. ``broadcast``: loads that a broadcast element counts for, an operand of the multiply-add or
    an instruction of its own; ``spill``: cycles of a product's step for each vector that has no register; ``masked``, ``masked_wise``: how
    many more loads a masked one is where masks are vectors; ``converting``, ``converted``: cycles of an element of two bytes that is then
    broadcast, and of a vector of them, ``together``: share of the lesser of these and the multiply-adds that is lost; ``picked``: cycles of
    a masked vector of two bytes, whose elements come one by one.
    """

    broadcast: float
    spill: float
    masked: float
    masked_wise: float
    converting: float
    converted: float
    together: float
    picked: float


_WIDE = _Pace(
    broadcast=0.95, spill=0.5, masked=0.0, masked_wise=0.0, converting=1.3, converted=0.8, together=0.3, picked=0.0
)
_NARROW = _Pace(
    broadcast=1.4, spill=0.6, masked=1.2, masked_wise=0.8, converting=1.0, converted=0.5, together=0.25, picked=9.0
)
#: Instructions that a core looks ahead: the sums of so many run beside each other. Cycles until the sum of a pair of bf16 can be used;
#: loads that its broadcast counts for.
_AHEAD, _LATE_PAIRS, _BROADCAST_PAIR = 145, 5.7, 2.65
#: Cycles of converting a vector of two bytes in a depthwise convolution.
_CONVERTING = 0.5
#: Loads that start in a cycle, of a vector as wide as the core's units; and how many of them one counts for: of the right factor, of a
#: depthwise one.
_LOADS, _RIGHT, _WISE = 2, 1.3, 1.03
#: Share by which a depthwise step takes longer whose vectors of half a cache line do not fill lines.
_HALF_LINE = 0.14
#: Cycles of a depthwise step for each vector that has no register, and for each row that has none even if those of one vector of channels
#: are kept at a time.
_SPILL_WISE, _SPILL_ROW = 0.25, 0.1
#: Share by which a step of a packed factor takes longer for each sum that a tile holds: the more there are, the fewer steps a core has in
#: flight.
_FULL = 0.0007
#: Of a window whose taps are stacked, for each vector: cycles of a sum of several products, of interleaving the rows of one place, and of
#: the weights; and by how much longer it takes where vectors are masked.
_SUMMED, _INTERLEAVING, _WEIGHTS, _PICKED = 1.2, 0.2, 1.2, 0.15
#: Pages whose addresses a core has at hand, and how many times as long a step of a single half vector takes whose sums lie in more.
_NEAR_PAGES, _FAR_PAGES = 64, 1.6
#: How often a tile of two half vectors loads an element of a row, once for each.
_TWICE = 2
#: How many more loads are needed of vectors that cross cache lines, of rows and of the right factor.
_CROSSING, _SPLIT = 0.68, 0.7


def tile_step(n: Numbers, core: Core) -> tuple[Array, tuple[Array, Array]]:
    """Cycles of a step, on average over heights; and how often latency, or loads, set them."""
    pace = _WIDE if core.registers == 32 else _NARROW
    total, late, loaded = (np.zeros_like(n["rows"]) for _ in range(3))
    low, more, wise, pairs = np.floor(n["height"]), n["taller"], n["wise"] > 0, n["step_rate"] > 1
    masked = (n["column_waste"] > 0) & ((n["packed"] == 0) | wise)
    starts = core.starts * (1 + n["halved"])
    stacked = n["stacked"] > 1
    for height, share in ((low, 1 - more), (low + 1, more)):
        places = places_of_a_tap(n, height)
        places = np.where(masked & (core.registers == 16), height, places)  # masked loads are not shared
        slow = 1 + masked * np.where(wise, pace.masked_wise, pace.masked)
        left = np.where(wise, places * n["vectors"] * (1 + _CROSSING * n["unaligned"]) * slow, height)
        right = n["vectors"] * (1 + _SPLIT * n["split"]) * np.where(wise, 1.0, slow)
        sums = height * n["vectors"]
        multiplies = sums + np.where(wise, left + right, 0.0) * n["converts"] * _CONVERTING
        summing = _SUMMED * sums + (_INTERLEAVING * places + _WEIGHTS) * n["vectors"]
        multiplies = np.where(stacked, summing * (1 + _PICKED * masked), multiplies)
        halves = 2 / starts  # a vector of 64 bytes takes two turns where units are half as wide
        vectors = halves * np.where(wise, _WISE * (left + right), _RIGHT * right)
        elements = height * np.where((n["halved"] > 0) & (n["vectors"] == 2), _TWICE, 1)
        ports = vectors + np.where(wise, 0.0, np.where(pairs, _BROADCAST_PAIR, pace.broadcast) * elements)
        # of a window LLVM keeps the rows that its taps share; masks are vectors where there are no registers for them
        # and both halves of pairs that are converted
        halves_kept = n["converts"] * (n["packed"] > 0)
        kept = np.where(wise, places * n["taps"], 1 + masked * (core.registers == 16) + halves_kept) * n["vectors"]
        spilled = np.maximum(sums + kept + 1 - core.registers, 0) / np.where(wise, n["taps"], 1) * ~stacked
        flow = np.maximum(multiplies / starts, ports / _LOADS) + np.where(wise, _SPILL_WISE, pace.spill) * spilled
        rows = np.where(wise & ~stacked & (core.registers == 32), places * n["taps"], 0.0)
        flow = flow + _SPILL_ROW * np.maximum(sums + rows + 1 - core.registers, 0) * wise
        alone = n["converts"] * (pace.converting * height + (pace.converted + pace.picked * masked) * n["vectors"])
        alone = np.where(wise, 0.0, alone)
        flow = np.maximum(flow, alone) + pace.together * np.minimum(flow, alone)
        odd = (core.item_lanes == 8) & (n["vectors"] % 2 == 1)  # half a cache line is left to another panel
        flow = flow * np.where(wise & odd, 1 + _HALF_LINE, 1.0)
        flow = flow * np.where(wise | (n["packed"] == 0), 1.0, 1 + _FULL * sums)
        narrow = (n["halved"] > 0) & (n["vectors"] == 1) & (n["pages"] > _NEAR_PAGES)
        flow = flow * np.where(narrow, _FAR_PAGES, 1.0)
        beside = 1 + _AHEAD / ((multiplies + left + right) * np.maximum(n["chain"] / n["step_rate"], 1))
        late_cycles = np.where(pairs, _LATE_PAIRS, LATENCY) / beside
        total += share * np.maximum(flow, late_cycles)
        late += share * (late_cycles > flow)
        loaded += share * (ports / _LOADS > multiplies / starts)
    return total, (late, loaded)
