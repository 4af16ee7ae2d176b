"""Which contractions run on tile registers (`contraction.amx`): those that lie as the registers take them, where that is less work.

Its work is counted in cycles, measured on a core of Emerald Rapids. There a product of tiles starts every 16 cycles, also one which
adds to the last one's sums (52 by Intel's Optimization Reference Manual), a tile comes from L1 in 10 cycles and from L2 in 26, and two
multiply-adds of vectors start a cycle. For a sum of K:

=========  ==================================================================================================================
tiles      ``ceil(K / 32)`` steps, of bytes ``ceil(K / 64)``, each the products' or the loads' time, and `ROW_CYCLES` a row where K has a
           remainder; `START` a unit, and `CONFIGURE` a kernel
vectors    of bf16, for each of K: a multiply-add a row and vector, two instructions that widen a row's factor, one a vector of columns; of
           bytes, for four of K: a ``vpdpbusd`` a row and vector, one load a vector, but no less than the columns' stream from L2
=========  ==================================================================================================================

A right factor of bf16 that is not constant is packed by the kernel (`amx_turned`), which counts too.

So bf16 takes tiles for K of a step or so and more, even for a single row: decode then shares the panels that prefill has packed. Bytes take
them for K of 24 and more and from 4 rows on. A few taps of a few channels stay with vectors.
"""

from __future__ import annotations

from math import prod

from effc.compiler.codegen.cpu import amx
from effc.compiler.codegen.cpu.contraction.byte_factors import is_bytes
from effc.compiler.codegen.cpu.contraction.roles import Nest
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.spec import ITEM_SIZE

#: Cycles from one product of tiles of 16 rows to the next, and of a tile's load from L2.
PRODUCT, LOAD = 16, 26
#: Cycles from the first load of a unit to its sums, less what runs beside the last unit's, and of configuring and releasing the registers.
START, CONFIGURE = 60, 250
#: Cycles of copying the remainder of a row: a masked load, a store, and the wait until a tile load may read it.
ROW_CYCLES = 4
#: Multiply-adds of vectors a cycle, and bytes from L2.
_FMAS, _L2_BYTES = 2, 48
#: Rows of a unit, and the vectors of columns of one.
UNIT_ROWS, UNIT_VECTORS = 2 * amx.ROWS, 2
#: Rows where their number is known only at run time.
_UNKNOWN = 256
#: Cycles of packing one tile of the right factor where columns are contiguous, and where K is.
_INTERLEAVE, _TRANSPOSE = 60, 100
#: Bytes of a panel that the kernel packs on the stack, beside 6 KiB of sums and remainders; where K is longer it comes in blocks of
#: `BLOCK` elements, and the sums of up to `TURNS` units wait on the stack too.
_PANEL_BYTES, BLOCK, TURNS = 52 * 1024, 512, 4


def takes_tiles(nest: Nest, target: Target) -> bool:
    """Whether the contraction runs on tile registers."""
    return target.has("amx_int8" if is_bytes(nest) else "amx_bf16") and _fits(nest) and pays(nest)


def packs_tiles(nest: Nest, target: Target) -> bool:
    """Whether the contraction runs on tile registers and packs its right factor itself: both are bf16 and neither is constant."""
    if nest.right.packed or not target.has("amx_bf16") or not _known(nest) or len(nest.reduction) != 1:
        return False
    right = [nest.stride(nest.right.load, dim).constant for dim in (nest.column, nest.reduction[0])]
    return 1 in right and is_bf16(nest) and pays(nest)


def in_blocks(nest: Nest) -> bool:
    """Whether K is too long for a panel on the stack, or may be."""
    length, row = nest.size(nest.reduction[-1]).constant, amx.ROW_BYTES // 2
    return length is None or -(-length // row) * row * 2 * vectors_of(nest) * amx.ROWS > _PANEL_BYTES


def packing_cycles(nest: Nest) -> float:
    """Of packing a panel, a unit's share, where the kernel does that."""
    if nest.right.packed:
        return 0
    steps = -(-(nest.size(nest.reduction[-1]).constant or _UNKNOWN) // (amx.ROW_BYTES // 2))
    contiguous = nest.stride(nest.right.load, nest.column).constant == 1
    turns = -(-(nest.size(nest.row).constant or _UNKNOWN) // UNIT_ROWS)
    turns = min(turns, TURNS) if in_blocks(nest) else turns
    return steps * vectors_of(nest) * (_INTERLEAVE if contiguous else _TRANSPOSE) / turns


def step_of(nest: Nest) -> int:
    """Elements of K in a row of a tile of the left factor: all that it holds, or less where shorter steps leave no remainder to copy, and
    cost at most one step more.
    """
    item = ITEM_SIZE[nest.spec.operands[nest.left.operand].dtype]
    whole, group, length = amx.ROW_BYTES // item, amx.GROUP_BYTES // item, nest.size(nest.reduction[-1]).constant
    if not length or length % group:
        return whole
    steps = -(-length // whole)
    even = next((n for n in (steps, steps + 1) if length % (n * group) == 0), 0)
    return length // even if even else whole


def vectors_of(nest: Nest) -> int:
    """Tiles of columns of a unit."""
    columns = nest.size(nest.column).constant
    return UNIT_VECTORS if columns is None else min(UNIT_VECTORS, -(-max(columns, 1) // amx.ROWS))


def step_cycles(nest: Nest) -> int:
    """Of one step of K of a unit."""
    rows, vectors = _unit_rows(nest), vectors_of(nest)
    load = LOAD * step_of(nest) * ITEM_SIZE[nest.spec.operands[nest.left.operand].dtype] // amx.ROW_BYTES
    return max(PRODUCT * -(-rows // amx.ROWS) * vectors, load * vectors + load * rows // amx.ROWS)


def epilogue_cycles(nest: Nest) -> int:
    """Of what follows the sums of a unit, two vector instructions a cycle."""
    after = len(nest.spec.body) - nest.contract
    return min(_unit_rows(nest), UNIT_ROWS) * vectors_of(nest) * after // _FMAS


def pays(nest: Nest) -> bool:
    """Whether tiles take fewer cycles than vectors for a unit."""
    length = nest.size(nest.reduction[-1]).constant
    if length is None and nest.right.packed:
        return True
    length = length or _UNKNOWN
    times = prod(nest.size(k).constant or 1 for k in nest.reduction[:-1])
    rows, step = _unit_rows(nest), step_of(nest)
    once = -(-length // step) * step_cycles(nest) + (rows * ROW_CYCLES if length % step else 0)
    beside = START + CONFIGURE / _units(nest) + packing_cycles(nest)
    return beside + times * once < times * _vector_cycles(nest, rows, length)


def _vector_cycles(nest: Nest, rows: int, length: int) -> float:
    """Of a sum over ``length`` by vectors."""
    vectors = vectors_of(nest)
    if not is_bytes(nest):
        return length * (vectors * (rows + 1) + 2 * rows) / _FMAS
    groups = -(-length // 4)
    return groups * vectors * max((rows + 1) / _FMAS, amx.ROW_BYTES / _L2_BYTES)


def _units(nest: Nest) -> int:
    """Of the whole contraction, with a guess for what is known only at run time."""
    rows, columns = nest.size(nest.row).constant or _UNKNOWN, nest.size(nest.column).constant or _UNKNOWN
    others = prod(nest.size(i).constant or _UNKNOWN for i in nest.outer)
    return -(-rows // UNIT_ROWS) * -(-columns // (UNIT_VECTORS * amx.ROWS)) * others


def _unit_rows(nest: Nest) -> int:
    """Rows of a unit: all units have one height."""
    rows = nest.size(nest.row).constant
    rows = _UNKNOWN if rows is None else max(rows, 1)
    return -(-rows // -(-rows // UNIT_ROWS))


def _fits(nest: Nest) -> bool:
    """Whether the right factor is packed, K is contiguous in the rows, and both are bf16 whose sums are f32, or bytes."""
    return nest.right.packed and _known(nest) and (is_bytes(nest) or is_bf16(nest))


def _known(nest: Nest) -> bool:
    """Whether there are columns and sums, whose neighbours lie next to each other in the rows."""
    if nest.wise or nest.borders or nest.column is None or not nest.reduction:
        return False
    return nest.stride(nest.left.load, nest.reduction[-1]).constant == 1


def is_bf16(nest: Nest) -> bool:
    """Whether both factors are bf16, widened and summed in f32."""
    spec, sides = nest.spec, (nest.left, nest.right)
    bf16 = all(spec.operands[side.operand].dtype == "bf16" for side in sides)
    plain = all(spec.body[i].op == "arith.extf" for side in sides for i in side.chain)
    return bf16 and plain and spec.body[nest.contract].dtype == "f32"
