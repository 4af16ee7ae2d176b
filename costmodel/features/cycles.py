"""How long a kernel should take, by a count of what its code does: the learned model predicts how far from it the truth is.

A direct product is counted as its template makes it: each register tile takes a number of cycles a step of its sum, which multiply-adds,
loads or the latency of a chain of sums set; each point then takes what follows the sum. Beside that flow the panels from the cache that
holds them, and the operands from wherever they lie. Other templates are counted by points.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from effc.costmodel.features import shares, sparse_step, winograd
from effc.costmodel.features.core import Core
from effc.costmodel.features.schedules import Numbers
from effc.costmodel.features.tile_step import tile_step
from effc.costmodel.features.window import places_of_a_tap
from effc.costmodel.hardware import Hardware

Array = NDArray[np.float64]

COLUMNS: tuple[str, ...] = (
    *("log_core_time", "log_panel_time", "log_operand_time", "log_weight_time", "log_epilogue_time", "log_tile_time"),
    *("log_counted", "log_call_cycles", "active_threads", "ratio_core_panel", "ratio_core_operand"),
    *("latency_bound", "load_bound", "step_cycles"),
)

#: Cycles around a tile: finding its place, its first loads and last stores; of a depthwise one.
_TILE, _SHORT_TILE = 2.5, 2.0
#: Instructions that interleave the rows of one place of a window, as the template counts them.
_INTERLEAVED = 4
#: Cycles of work for which another thread is started.
_A_THREAD = 12_000
#: Share of the time of data that a product loses beside its arithmetic: of panels that come again from L2 (of rows none), of
#: activations, of weights where the panels are outside, and where the rows are. Of all data, of depthwise products, of those whose
#: arithmetic takes longer than their data on vectors of 32 bytes, and of what has none.
_LOST_PANELS, _LOST_ACTIVATIONS, _LOST_WEIGHTS, _LOST_OUTSIDE = 0.05, 0.1, 0.27, 0.31
_LOST_WISE, _LOST_SHORT, _LOST_LOOPS = 0.187, 0.35, 0.09
#: What follows a sum takes so many times the cycles that it takes alone: of products, of depthwise ones, beside whose sums it runs.
_AFTER, _AFTER_WISE = 1.1, 0.45
#: Share of a cache that operands can count on; how many times its size the last one must be for nothing to be left in it; copies of weights
#: that are read in turn where traces are collected, and the share of them that the last cache holds all the same.
_USABLE, _HELD, _COPIES, _KEPT = 0.8, 1.28, 64, 0.2
#: Cycles of a vector of exponentials, with what else a softmax does to one.
_SOFTMAX = 24
#: How many times the cycles a function takes where AVX-512's instructions for exponents and masks are not.
_PLAIN_FUNCTION = 1.7
#: Seconds of a call with threads, and on the calling thread.
_THREADS, _ALONE = 0.8e-6, 3e-9
_NANO = 1e9


def columns(n: Numbers, core: Core, hardware: Hardware, threads: int) -> dict[str, Array]:
    """`COLUMNS`, and ``useful_threads``, that the work is worth, however many there are; ``log_counted`` is of the whole call."""
    step, bound = tile_step(n, core)
    tiles = _tiles(n, core, step)
    plain = (_PLAIN_FUNCTION - 1) * n["function_cycles"] * (core.registers == 16)
    epilogue = _by_kind(n, _AFTER, _AFTER_WISE, 1 / core.starts) * (n["vector_cycles"] + plain)
    multiply = np.where(n["contracts"] > 0, tiles, 0.0)
    attention = np.where(n["is_attention"] > 0, _attention(n, core), 0.0)
    work = multiply + np.where(n["is_attention"] > 0, attention, epilogue)
    useful = np.minimum(np.floor(_asked(n, attention) / _A_THREAD), n["units"])
    active = np.clip(useful, 1, threads)
    uneven = shares.uneven(n, active)
    compute = work / active * uneven * core.cycle
    panels = uneven * np.where(n["by_sparse"] > 0, 0.0, n["streamed"]) / (hardware.caches[1] * active)
    operands = uneven * n["activations"] / _speed_of(n["activations"], hardware, active, threads)
    weights = n["packed"] / _speed_of(n["packed"] * _COPIES, hardware, active, threads, _KEPT)
    lost_wise = np.where((core.registers == 16) & (compute > panels), _LOST_SHORT, _LOST_WISE)
    counted = np.where(
        (n["contracts"] > 0) & (n["wise"] == 0),
        _of_product(n, compute, panels, operands, weights),
        _beside(np.where(n["wise"] > 0, lost_wise, _LOST_LOOPS), compute, panels, operands, weights),
    ) + np.where(active > 1, _THREADS, _ALONE)
    return {
        "log_core_time": compute * _NANO,
        "log_panel_time": panels * _NANO,
        "log_operand_time": operands * _NANO,
        "log_weight_time": weights * _NANO,
        "log_epilogue_time": epilogue * core.cycle * _NANO,
        "log_tile_time": np.where(n["tiled"] > 0, tiles / np.maximum(n["register_tiles"], 1), 0.0) * core.cycle * _NANO,
        "log_counted": counted * _NANO,
        "log_call_cycles": work,
        "active_threads": active,
        "useful_threads": useful,
        "ratio_core_panel": compute / np.maximum(panels, 1e-12),
        "ratio_core_operand": compute / np.maximum(operands, 1e-12),
        "latency_bound": bound[0],
        "load_bound": bound[1],
        "step_cycles": step,
    }


def _of_product(n: Numbers, compute: Array, panels: Array, operands: Array, weights: Array) -> Array:
    """Seconds of a product, whose data all come through one port, one after the other, beside its arithmetic."""
    data = panels + operands + weights
    again = n["rows_again"] / np.maximum(n["streamed"], 1)
    lost = (
        _LOST_PANELS * panels * (1 - again)
        + _LOST_ACTIVATIONS * operands
        + np.where(n["rows_outside"] > 0, _LOST_OUTSIDE, _LOST_WEIGHTS) * weights
    )
    share = lost / np.maximum(data, 1e-12)
    found: Array = np.maximum(compute, data) + share * np.minimum(compute, data)
    return found


def _beside(lost: Array, *parts: Array) -> Array:
    """Seconds of ``parts`` that run beside each other: those of the longest, and what is lost of all others."""
    longest = np.maximum.reduce(parts)
    found: Array = longest + lost * (sum(parts) - longest)
    return found


def _by_kind(n: Numbers, product: float, wise: float, other: float) -> Array:
    return np.where(n["wise"] > 0, wise, np.where(n["contracts"] > 0, product, other))


def _asked(n: Numbers, attention: Array) -> Array:
    """Cycles by which the templates decide how many threads are worth it."""
    steps = n["sums"] / n["step_rate"]
    stacked = n["tile_rows"] + _INTERLEAVED * places_of_a_tap(n, n["tile_rows"])
    rows = np.where(n["stacked"] > 1, stacked, np.maximum(n["tile_rows"], 4))
    product = n["register_tiles"] * (steps * n["vectors"] * rows + 64)
    return np.where(n["contracts"] > 0, product, np.where(n["is_attention"] > 0, attention, n["vector_asked"]))


def _tiles(n: Numbers, core: Core, step: Array) -> Array:
    """Cycles of the products of a contraction."""
    inside = np.where(n["stacked"] > 1, np.sqrt(n["inside"]), n["inside"])  # stacked taps that are outside are zeros
    sums = n["sums"] * np.where(n["by_skip"] > 0, n["stored"], 1.0) * inside / n["step_rate"]
    direct = n["register_tiles"] * (sums * step + np.where(n["wise"] > 0, _SHORT_TILE, _TILE))
    found = np.where(n["by_winograd"] > 0, winograd.cycles(n, core), direct)
    return np.where(n["by_sparse"] > 0, sparse_step.cycles(n, core), found)


def _attention(n: Numbers, core: Core) -> Array:
    """Lanes are queries; of few, channels."""
    few = (n["rows"] <= 4) & (n["sums"] % n["lanes"] == 0) & (n["columns_out"] % n["lanes"] == 0)
    vectors = np.where(few, n["rows"], np.ceil(n["rows"] / n["lanes"]))
    channels = np.where(
        few, np.ceil(n["sums"] / n["lanes"]) + n["columns_out"] / n["lanes"], n["sums"] + n["columns_out"]
    )
    seen = np.where(n["masked"] > 0, 0.5 + 0.5 * np.minimum(1, 2 * n["lanes"] / np.maximum(n["rows"], 1)), 1.0)
    softmax = np.where(few, _SOFTMAX / n["lanes"] + 5, _SOFTMAX)
    found: Array = n["batches"] * vectors * n["columns"] * seen * (channels + softmax) / core.starts
    return found


def _speed_of(footprint: Array, hardware: Hardware, active: Array, threads: int, kept: float = 0.0) -> Array:
    """Bytes a second from where so many bytes lie; the last cache holds a part of what is nearly as large as it is, or larger."""
    speed = hardware.speed_of(threads)
    far = np.where(active > 1, speed.bandwidth, hardware.one.bandwidth)
    held = np.clip(_HELD - footprint / max(hardware.l3, 1), kept, 1.0)
    found = 1 / (held / np.maximum(hardware.caches[2] * active, far) + (1 - held) / far)
    found = np.where(footprint / active <= _USABLE * hardware.l2, hardware.caches[1] * active, found)
    return np.where(footprint / active <= _USABLE * hardware.l1, hardware.caches[0] * active, found)
