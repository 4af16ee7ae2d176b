"""The register tile of a contraction, chosen by a count of cycles, and what follows from it.

The count takes one step of K for one tile: multiply-adds, loads, the latency of a chain of multiply-adds, and the panel's stream
from the cache that holds it. The figures are those of Zen 5 with 512-bit units, which were confirmed by timing 6x64, 7x64, 8x48 and
14x32 tiles on 32…512 x 768 x 3072 (7x64 needs 33 registers: it ran at 0.84 of 6x64); narrower cores scale all alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from math import prod

from effc.compiler.codegen.cpu.contraction.amx_form import UNIT_ROWS, vectors_of
from effc.compiler.codegen.cpu.contraction.byte_factors import is_bytes
from effc.compiler.codegen.cpu.contraction.code_rows import DECODING, UNPACKING, bytes_each, few_rows, rows_as_bytes
from effc.compiler.codegen.cpu.contraction.form import form, in_halves, is_codes, lanes_of, packed_group
from effc.compiler.codegen.cpu.contraction.grouped import places_of, taps_of
from effc.compiler.codegen.cpu.contraction.order import L2_SHARE, order
from effc.compiler.codegen.cpu.contraction.roles import Nest
from effc.compiler.codegen.cpu.contraction.rows import split
from effc.compiler.codegen.cpu.contraction.stacked import instructions, weights_of
from effc.compiler.codegen.cpu.contraction.touch import streams
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.expr import Expr
from effc.compiler.ir.spec import ITEM_SIZE, Schedule

#: Steps of K that ``vpdpbusd`` sums.
BYTES = 4
#: Latency of a multiply-add in cycles, multiply-adds and loads a cycle.
LATENCY, FMAS, LOADS = 4, 2, 2
#: Bytes of right factor a cycle: from L2, and from L3 or memory (a core reads 20-28 GB/s at about 3.6 GHz).
L2_BYTES, FAR_BYTES = 32, 8
#: Rows and columns taken for a size that is known only at run time.
UNKNOWN = 256
#: Rows read from addresses that are a multiple of 4 KiB apart share one set of L1's 12 ways: 30 rows ran at a quarter of the
#: speed of 10 on 49 x 2048 x 512, and 14 were never faster than 10 (1x1, 3x3 and 7x7 convolutions of ResNet-50).
MOST_ROWS, EASY_ROWS = 14, 10
#: Cost of each further row where they do: 14 rows of 1024 channels ran at 180 GFLOP/s, 7 to 13 at 234-248 (196 x 1024 x 256).
CROWDED, PAGE = 0.05, 4096
#: Tallest tile where the number of rows is known only at run time: each height up to it has code of its own.
MOST_ROWS_UNKNOWN = 8
#: Finding a tile's place, and its first and last loads and stores.
TILE_CYCLES = 40
#: Tiles of few rows of codes are alike up to this ratio of their counts; cycles of a row's broadcast, which all vectors share. Measured on
#: two Zen 4 cores: 4 x 4096 x 4096 in 4 bits took 864 us by 4x32, 789 by 4x48, 701 by 4x64, 803 by 4x80; with one row 48 columns did as
#: well as more.
ALIKE, BROADCAST = 1.05, 0.4
#: Steps of K for which a tile of codes reads and writes its sums, and cycles that a vector of their block takes from L2, where the
#: block and the sums fill L1: 128 x 4096 x 4096 in 4 bits ran at 206 GFLOP/s by 8x48, 197 by 11x32, 192 by 6x64 and 4x96, 190 by 5x80.
CHAIN, BLOCK_CYCLES = 128, 2
#: Of rows of an image that are interleaved: registers that this takes, and registers of weights, of which more are read as they are used.
STACKING_REGISTERS, STACKED_WEIGHTS = 4, 12
#: Steps of K a loop body holds: the loop's own instructions then cost a few percent at most.
UNROLL = 4


def tiles(nest: Nest, target: Target) -> list[tuple[int, int]]:
    """``(mr, vectors)`` of all register tiles worth trying: accumulators, one step's columns and one broadcast fit the registers."""
    kind = form(nest, target)
    if kind == "dots":
        return [(1, 1)]
    if kind in ("amx", "amx_turned"):
        return [(UNIT_ROWS, vectors_of(nest))]
    registers = 32 if target.vector_bytes == 64 else 16
    if is_codes(nest):
        return _code_tiles(nest, target, registers)
    if (
        nest.wise and not nest.channels and not nest.stacked
    ):  # LLVM keeps rows that several taps share in registers too: more than half for accumulators spills
        registers = registers // 2 + 1
    rows = nest.size(nest.row).constant
    tallest = [
        mr
        for mr in range(1, MOST_ROWS_UNKNOWN + 1 if rows is None else min(max(rows, 1), MOST_ROWS) + 1)
        if rows is None or mr == max(height for _, height in split(max(rows, 1), mr))
    ]
    if nest.channels:  # LLVM keeps the places in registers too, beside the taps of one channel along a row
        return [(mr, 1) for mr in tallest if mr + len(places_of(nest, mr)) + taps_of(nest) <= registers] or [(1, 1)]
    lanes = lanes_of(nest, target)
    widest = 1 if nest.column is None else -(-_count(nest.size(nest.column)) // lanes)
    beside = [vectors + 1 for vectors in range(1, min(widest, 8) + 1)]
    if nest.stacked:  # weights of a vector of channels, and rows of the image
        beside = [STACKING_REGISTERS + min(weights_of(nest), STACKED_WEIGHTS)] * len(beside)
    return [
        (mr, vectors)
        for vectors, others in enumerate(beside, 1)
        for mr in tallest
        if mr * vectors + others <= registers
    ]


def _code_tiles(nest: Nest, target: Target, registers: int) -> list[tuple[int, int]]:
    """Tiles of codes: all rows, where they are few; else tiles read floats from a buffer, the last one of them past its rows."""
    widest = min(-(-_count(nest.size(nest.column)) // lanes_of(nest, target)), 8)
    rows, few = nest.size(nest.row).constant, few_rows(nest.size(nest.row))
    if few and rows is not None:  # beside the sums: a step's columns, their zero points, a word and the table
        fits = [v for v in range(1, widest + 1) if max(rows, 1) * v + 2 * v + 2 <= registers]
        return [(max(rows, 1), v) for v in fits or [1]]
    return [
        (mr, v)
        for v in range(1, widest + 1)
        for mr in range(1, MOST_ROWS + 1)
        if mr * v + v + 1 <= registers and (rows is not None or few * v + 2 * v + 2 <= registers)
    ]


def schedule(nest: Nest, target: Target) -> Schedule:
    """The tile of the lowest count."""
    counts = estimates(nest, target)
    if is_codes(nest) and few_rows(nest.size(nest.row)) and nest.size(nest.row).constant is not None:
        # of tiles that are as good, that with the most panels, which threads share evenly
        least = min(counts.values())
        mr, vectors = min((t for t in counts if counts[t] <= ALIKE * least), key=lambda t: t[1])
    else:
        mr, vectors = min(counts, key=lambda t: (counts[t], -t[0] * t[1], t))
    return as_schedule(nest, target, mr, vectors)


def chosen(nest: Nest, target: Target, wanted: Schedule | None) -> Schedule:
    """``wanted`` where the template has such a schedule for this contraction, else ``schedule``'s choice."""
    if wanted is None:
        return schedule(nest, target)
    mr, vectors = wanted.get("mr"), wanted.get("nr", 0) // lanes_of(nest, target)
    if (mr, vectors) in tiles(nest, target) and wanted in variants(nest, target, mr, vectors):
        return wanted
    return schedule(nest, target)


def as_schedule(nest: Nest, target: Target, mr: int, vectors: int) -> Schedule:
    """All parameters of a tile, by rule (`order`, `touch`)."""
    return variants(nest, target, mr, vectors)[0]


def variants(nest: Nest, target: Target, mr: int, vectors: int) -> list[Schedule]:
    """The schedules of one tile, the one by rule first; the others exchange one parameter each.

    ``order``: whether ``rows`` or ``panels`` are the outer loop; ``touch``: whether the epilogue's lines are fetched before the sums.
    """
    nr, kind = vectors * lanes_of(nest, target), form(nest, target)
    tiled = kind in ("tiles", "amx")
    rule = order(nest, nr) if tiled else "panels"
    both = tiled and nest.right.packed and not nest.wise
    orders = (rule, "panels" if rule == "rows" else "rows") if both else (rule,)
    touches = (1, 0) if kind == "tiles" and not nest.wise and streams(nest) else (0,)
    choices = [(orders[0], touches[0]), *((o, touches[0]) for o in orders[1:]), *((rule, t) for t in touches[1:])]
    return [
        Schedule((("mr", mr), ("nr", nr), ("order", outside), ("touch", touch), ("unroll", UNROLL)))
        for outside, touch in choices
    ]


@lru_cache(maxsize=1024)
def estimates(nest: Nest, target: Target) -> Mapping[tuple[int, int], float]:
    """`estimate` of all `tiles`."""
    return {tile: estimate(nest, target, *tile) for tile in tiles(nest, target)}


def estimate(nest: Nest, target: Target, mr: int, vectors: int) -> float:
    """Cycles of one step of K over all rows and columns."""
    rows = _count(nest.size(nest.row))
    lanes = lanes_of(nest, target)
    if is_codes(nest):
        return _code_estimate(nest, target, mr, vectors)
    panels = 1 if nest.column is None else -(-_count(nest.size(nest.column)) // (lanes * vectors))
    cut, steps = split(rows, mr), steps_of(nest)
    count = sum(tiles for tiles, _ in cut)
    halves = 2 if in_halves(nest, target) else 1
    size = vectors * target.vector_bytes // halves
    far = 1 if steps * size <= L2_SHARE else count
    streams = far * size / FAR_BYTES + (count - far) * size / L2_BYTES
    compute = sum(tiles * _step(nest, height, vectors) for tiles, height in cut) / halves
    # The streams run beside the arithmetic, but not for free: a quarter of the shorter of the two is lost.
    return panels * (max(compute, streams) + min(compute, streams) / 4 + count * TILE_CYCLES / steps)


def _code_estimate(nest: Nest, target: Target, mr: int, vectors: int) -> float:
    """Cycles of one step of K over all rows; where their number is known only at run time, over a prompt and as many single rows."""
    size = nest.size(nest.row)
    rows, steps = _count(size), steps_of(nest)
    panels = -(-_count(nest.size(nest.column)) // (lanes_of(nest, target) * vectors))
    if few_rows(size) and size.constant is not None:
        even = panels + panels % 2  # one panel is a unit of work, and threads are even in number
        return even * (_few_codes(nest, target, rows, vectors) + TILE_CYCLES / steps)
    count, stream = -(-rows // mr), vectors * BLOCK_CYCLES
    compute = _step(nest, mr, vectors)
    tile = max(compute, stream) + min(compute, stream) / 4 + TILE_CYCLES / min(steps, CHAIN)
    single = rows * _few_codes(nest, target, 1, vectors) if few_rows(size) else 0
    return panels * (count * tile + vectors * DECODING + single)


def _few_codes(nest: Nest, target: Target, rows: int, vectors: int) -> float:
    """Cycles of one step of K of a tile of all rows: a multiply-add for each, and making floats of codes; or one for each byte of an
    element and four steps.
    """
    if rows_as_bytes(nest, target, vectors) >= rows:
        sums = rows * bytes_each(nest, target) / BYTES
        return max(LATENCY / BYTES, vectors * (sums / FMAS + UNPACKING)) + sums * BROADCAST
    return max(LATENCY, vectors * (rows / FMAS + DECODING / 2)) + rows * BROADCAST


def _step(nest: Nest, mr: int, vectors: int) -> float:
    loads = vectors + (mr * vectors if nest.wise else mr)
    cycles = max(LATENCY, mr * vectors / FMAS, loads / LOADS)
    if nest.channels:  # each place is permuted once for all taps
        cycles = max(LATENCY, (mr + len(places_of(nest, mr)) / taps_of(nest)) / FMAS)
    if nest.stacked:
        cycles = max(LATENCY, vectors * instructions(nest, mr) / steps_of(nest) / FMAS)
    return cycles * (1 + (CROWDED if _crowded(nest) else 0.01) * max(0, mr - EASY_ROWS))


def _crowded(nest: Nest) -> bool:
    """Whether all rows of a tile fall into one set of L1."""
    stride = nest.stride(nest.left.load, nest.row).constant
    item = ITEM_SIZE[nest.spec.operands[nest.left.operand].dtype]
    return stride is not None and stride > 0 and stride * item % PAGE == 0


def steps_of(nest: Nest) -> int:
    """Of K, as `estimate` counts them: of bytes, four at a time; of stacked taps, those that a lane holds."""
    if nest.stacked:
        return weights_of(nest)
    points = prod(_count(nest.spec.dims[k].size) for k in nest.reduction)
    return -(-points // packed_group(nest)) if nest.right.packed and is_bytes(nest) else points


def _count(size: Expr) -> int:
    return UNKNOWN if size.constant is None else max(size.constant, 1)
