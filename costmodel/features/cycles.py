"""How long a kernel should take, by a count of what its code does: the learned model predicts how far from it the truth is.

A direct product is counted as its template makes it: each register tile takes a number of cycles a step of its sum, which multiply-adds,
loads or the latency of a chain of sums set; each point then takes what follows the sum. Beside that flow the panels from the cache that
holds them, and the operands from wherever they lie. Other templates are counted by points.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from effc.costmodel.features.core import LATENCY, Core
from effc.costmodel.features.schedules import Numbers
from effc.costmodel.hardware import Hardware
from effc.costmodel.roofline import OVERHEAD

Array = NDArray[np.float64]

COLUMNS: tuple[str, ...] = (
    *("log_core_time", "log_panel_time", "log_operand_time", "log_weight_time", "log_epilogue_time", "log_tile_time"),
    *("log_counted", "log_call_cycles", "active_threads", "ratio_core_panel", "ratio_core_operand"),
    *("latency_bound", "load_bound", "step_cycles"),
)

#: Cycles around a tile: finding its place, its first loads and last stores; of a depthwise one.
_TILE, _SHORT_TILE = 2.5, 2.0
#: Instructions that a core looks ahead: the sums of so many run beside each other. Cycles until the sum of a pair of bf16 can be used,
#: beside which none run.
_AHEAD, _LATE_PAIRS = 155, 5.6
#: Cycles of converting a vector, or a broadcast element, of two bytes.
_CONVERTING = 0.5
#: Cycles of a step for each vector that has no register; how many more loads a masked one is where masks are vectors (AVX2).
_SPILL, _MASKED = 0.5, 1.4
#: Loads that start in a cycle, of a vector as wide as the core's units; and how many of them one counts for: of the right factor, of a
#: depthwise one.
_LOADS, _RIGHT, _WISE = 2, 1.3, 1.0
#: The same of a broadcast element: an operand of the multiply-add (AVX-512), or an instruction of its own.
_BROADCAST, _BROADCAST_ALONE = 0.8, 1.4
#: How many more loads are needed of vectors that cross cache lines, of rows and of the right factor.
_CROSSING, _SPLIT = 0.68, 0.5
#: Cycles of work for which another thread is started.
_A_THREAD = 12_000
#: How much of the lesser of two things that happen at once is lost: of products, of depthwise ones, and of what has none.
_LOST, _LOST_WISE, _LOST_LOOPS = 0.106, 0.187, 0.09
#: What follows a sum takes so many times the cycles that it takes alone: of products, of depthwise ones, beside whose sums it runs.
_AFTER, _AFTER_WISE = 1.25, 0.52
#: Share of a cache that operands can count on; how many times its size the last one must be for nothing to be left in it; copies of weights
#: that are read in turn where traces are collected, and the share of them that the last cache holds all the same.
_USABLE, _HELD, _COPIES, _KEPT = 0.8, 1.28, 64, 0.2
#: Winograd's F(2x2, 3x3): products of a tile of 4 outputs, each a position; cycles of its transforms, of a vector.
_POSITIONS, _OUTPUTS, _TRANSFORMS = 16, 4, (26.0, 22.0)
#: Cycles of a vector of exponentials, with what else a softmax does to one.
_SOFTMAX = 24
#: Of what a parallel call costs, what one on the calling thread does.
_ALONE = 0.003
_NANO = 1e9


def columns(n: Numbers, core: Core, hardware: Hardware, threads: int) -> dict[str, Array]:
    """`COLUMNS`; ``log_counted`` is of the whole call."""
    step, bound = _step(n, core)
    tiles = _tiles(n, core, step)
    epilogue = _by_kind(n, _AFTER, _AFTER_WISE, 1 / core.starts) * n["vector_cycles"]
    multiply = np.where(n["contracts"] > 0, tiles, 0.0)
    attention = np.where(n["is_attention"] > 0, _attention(n, core), 0.0)
    work = multiply + np.where(n["is_attention"] > 0, attention, epilogue)
    active = np.clip(np.floor(_asked(n, attention) / _A_THREAD), 1, np.minimum(threads, n["units"]))
    uneven = np.ceil(n["units"] / active) * active / n["units"]
    compute = work / active * uneven * core.cycle
    panels = uneven * n["streamed"] / (hardware.caches[1] * active)
    operands = uneven * n["activations"] / _speed_of(n["activations"], hardware, active, threads)
    weights = n["packed"] / _speed_of(n["packed"] * _COPIES, hardware, active, threads, _KEPT)
    longest = np.maximum(np.maximum(compute, panels), np.maximum(operands, weights))
    beside = compute + panels + operands + weights - longest
    counted = (
        longest + _by_kind(n, _LOST, _LOST_WISE, _LOST_LOOPS) * beside + OVERHEAD * np.where(active > 1, 1.0, _ALONE)
    )
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
        "ratio_core_panel": compute / np.maximum(panels, 1e-12),
        "ratio_core_operand": compute / np.maximum(operands, 1e-12),
        "latency_bound": bound[0],
        "load_bound": bound[1],
        "step_cycles": step,
    }


def _by_kind(n: Numbers, product: float, wise: float, other: float) -> Array:
    return np.where(n["wise"] > 0, wise, np.where(n["contracts"] > 0, product, other))


def _asked(n: Numbers, attention: Array) -> Array:
    """Cycles by which the templates decide how many threads are worth it."""
    steps = n["sums"] / n["step_rate"]
    product = n["units"] * (steps * n["vectors"] * np.maximum(n["tile_rows"], 4) + 64)
    return np.where(n["contracts"] > 0, product, np.where(n["is_attention"] > 0, attention, n["vector_asked"]))


def _step(n: Numbers, core: Core) -> tuple[Array, tuple[Array, Array]]:
    """Cycles of one step of the sum of a tile, on average; and how often latency, or loads, set them."""
    total, late, loaded = (np.zeros_like(n["rows"]) for _ in range(3))
    low, more, wise = np.floor(n["height"]), n["taller"], n["wise"] > 0
    for height, share in ((low, 1 - more), (low + 1, more)):
        apart = np.where(n["stride"] > 0, n["stride"] * (height - 1) + n["taps"], height * n["taps"])
        places = np.minimum(apart, height * n["taps"]) / np.maximum(n["taps"], 1)
        # masks are vectors where there are no registers for them
        masks = (core.registers == 16) & (n["column_waste"] > 0) & ((n["packed"] == 0) | wise)
        slow = 1 + _MASKED * masks
        left = np.where(wise, places * n["vectors"] * (1 + _CROSSING * n["unaligned"]) * slow, height)
        right = n["vectors"] * (1 + _SPLIT * n["split"]) * np.where(wise, 1.0, slow)
        multiplies = height * n["vectors"] + (right + left) * n["converts"] * _CONVERTING
        halves = 2 / core.starts  # a vector of 64 bytes takes two turns where units are half as wide
        vectors = halves * np.where(wise, _WISE * (left + right), _RIGHT * right)
        broadcast = _BROADCAST if core.registers == 32 else _BROADCAST_ALONE
        ports = vectors + np.where(wise, 0.0, broadcast * height)
        # of a window LLVM keeps the rows that its taps share
        kept = np.where(wise, places * n["taps"], 1 + masks) * n["vectors"]
        spilled = np.maximum(height * n["vectors"] + kept + 1 - core.registers, 0) / np.where(wise, n["taps"], 1)
        flow = np.maximum(multiplies / core.starts, ports / _LOADS) + _SPILL * spilled
        beside = 1 + _AHEAD / ((multiplies + left + right) * np.maximum(n["chain"], 1))
        late_cycles = np.where(n["step_rate"] > 1, _LATE_PAIRS, LATENCY / beside)
        total += share * np.maximum(flow, late_cycles)
        late += share * (late_cycles > flow)
        loaded += share * (ports / _LOADS > multiplies / core.starts)
    return total, (late, loaded)


def _tiles(n: Numbers, core: Core, step: Array) -> Array:
    """Cycles of the products of a contraction."""
    sums = n["sums"] * n["stored"] * n["inside"] / n["step_rate"]
    direct = n["register_tiles"] * (sums * step + np.where(n["wise"] > 0, _SHORT_TILE, _TILE))
    positions = n["rows"] * n["batches"] / _OUTPUTS  # tiles of outputs
    panels = np.ceil(n["columns"] / n["tile_columns"])
    rows = np.ceil(positions / n["tile_rows"])
    taps = n["sums"] / 9
    multiplies = np.maximum(n["tile_rows"] * n["vectors"] / core.starts, LATENCY)
    transforms = positions * (taps * _TRANSFORMS[0] + n["columns"] * _TRANSFORMS[1]) / n["lanes"] * 2 / core.starts
    winograd = _POSITIONS * rows * panels * (taps * multiplies + _TILE) + transforms
    return np.where(n["by_winograd"] > 0, winograd, direct)


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
