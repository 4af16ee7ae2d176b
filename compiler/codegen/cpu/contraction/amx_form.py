"""Which contractions run on tile registers (`contraction.amx`): those that lie as the registers take them, where that is less work.

The work is counted in cycles; the count was made from manuals, and no core confirmed it: by Intel's (Optimization Reference Manual,
chapter on AMX) a product of tiles starts every 16 cycles and takes 52, and two multiply-adds of vectors start a cycle. For a sum of
K over two tiles of columns:

=========  ==================================================================================================================
tiles      ``ceil(K / 32) * max(52, 16 * tiles of sums)`` for up to 32 rows, and `ROW_CYCLES` a row where K has a remainder
vectors    ``K * (rows + 1)``: a multiply-add a row and two instructions that widen the pairs, of two vectors
=========  ==================================================================================================================

So tiles are taken for K of a step or so and more, even for a single row: there both are bound by the stream of the weights, 39
against 32 bytes a cycle where memory gives 8 or so, and decode shares the panels that prefill has packed. A few taps of a few channels
stay with vectors.
"""

from __future__ import annotations

from effc.compiler.codegen.cpu import amx
from effc.compiler.codegen.cpu.contraction.byte_factors import is_bytes
from effc.compiler.codegen.cpu.contraction.roles import Nest
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.spec import ITEM_SIZE

#: Cycles from one product of tiles to the next, and from one to another that adds to its sums.
PRODUCT, CHAIN = 16, 52
#: Cycles of copying the remainder of a row: a masked load, a store, and the wait until a tile load may read it (an estimate).
ROW_CYCLES = 4
#: Rows of a unit, and the vectors of columns of one.
UNIT_ROWS, UNIT_VECTORS = 2 * amx.ROWS, 2
#: Rows where their number is known only at run time.
_UNKNOWN = 256


def takes_tiles(nest: Nest, target: Target) -> bool:
    """Whether the contraction runs on tile registers."""
    return target.has("amx_int8" if is_bytes(nest) else "amx_bf16") and _fits(nest) and pays(nest)


def step_of(nest: Nest) -> int:
    """Elements of K in a row of a tile of the left factor."""
    return amx.ROW_BYTES // ITEM_SIZE[nest.spec.operands[nest.left.operand].dtype]


def vectors_of(nest: Nest) -> int:
    """Tiles of columns of a unit."""
    columns = nest.size(nest.column).constant
    return UNIT_VECTORS if columns is None else min(UNIT_VECTORS, -(-max(columns, 1) // amx.ROWS))


def step_cycles(nest: Nest) -> int:
    """Of the products of one step of K of a unit."""
    halves = -(-_unit_rows(nest) // amx.ROWS)
    return max(CHAIN, PRODUCT * halves * vectors_of(nest))


def pays(nest: Nest) -> bool:
    """Whether tiles take fewer cycles than vectors for the innermost sum of a unit."""
    length = nest.size(nest.reduction[-1]).constant
    if length is None:
        return True
    rows, step = _unit_rows(nest), step_of(nest)
    tiles = -(-length // step) * step_cycles(nest) + (rows * ROW_CYCLES if length % step else 0)
    return tiles < length * vectors_of(nest) * (rows + 1) / 2


def _unit_rows(nest: Nest) -> int:
    """Rows of a unit: all units have one height."""
    rows = nest.size(nest.row).constant
    rows = _UNKNOWN if rows is None else max(rows, 1)
    return -(-rows // -(-rows // UNIT_ROWS))


def _fits(nest: Nest) -> bool:
    """Whether the right factor is packed, K is contiguous in the rows, and both are bf16 whose sums are f32, or bytes."""
    spec = nest.spec
    if not nest.right.packed or nest.wise or nest.borders or nest.column is None or not nest.reduction:
        return False
    sides = (nest.left, nest.right)
    contiguous = nest.stride(nest.left.load, nest.reduction[-1]).constant == 1
    if is_bytes(nest):
        return contiguous
    bf16 = all(spec.operands[side.operand].dtype == "bf16" for side in sides)
    plain = all(spec.body[i].op == "arith.extf" for side in sides for i in side.chain)
    return bf16 and plain and contiguous and spec.body[nest.contract].dtype == "f32"
