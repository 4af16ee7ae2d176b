"""Which of six kernels a contraction gets: the one that suits how its factors lie in memory."""

from __future__ import annotations

from effc.compiler.codegen.cpu.contraction.amx_form import packs_tiles, step_of, takes_tiles
from effc.compiler.codegen.cpu.contraction.byte_factors import is_bytes
from effc.compiler.codegen.cpu.contraction.roles import Nest
from effc.compiler.codegen.cpu.loops.costs import is_heavy
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.spec import ITEM_SIZE

#: Bytes of a page, and of one way of the first-level cache.
PAGE = 4096

#: Up to this many rows, turning the right factor costs more than it saves: a turned element costs about 0.3 cycles, and each
#: row then needs 1/32 of a cycle for it.
FEW_ROWS = 4
#: From so many rows on, a factor that could be read in place is copied where its rows collide in the caches: 64 rows lost by it.
MANY_ROWS = 256
#: Shorter sums stay in the caches nevertheless.
MANY_STEPS = 256
#: How many times as many multiply-adds as by half vectors are too many by whole ones. On two cores of Zen 4, 3136 rows of 144 channels to
#: 24, which are 1.33 times as many: 1.26 times the speed by halves; 784 of 240 to 40, 1.2 times as many: 1.19.
WASTED = 1.1


def lanes_of(nest: Nest, target: Target) -> int:
    """Accumulators of a vector; 1 where there is no column to fill it with."""
    if nest.column is None:
        return 1
    lanes = target.lanes(ITEM_SIZE[nest.spec.body[nest.contract].dtype])
    return lanes // 2 if in_halves(nest, target) else lanes


def in_halves(nest: Nest, target: Target) -> bool:
    """Whether columns come in half vectors: where two of them cost no more than a whole one, few columns fill them better (24 are
    three, and would be two whole ones).
    """
    columns, lanes = nest.size(nest.column).constant or 0, target.lanes(ITEM_SIZE["f32"])
    if 2 * -(-columns // lanes) <= WASTED * -(-columns // (lanes // 2)) or not target.pairs_halves:
        return False
    if nest.wise or nest.channels or not nest.right.packed or nest.right.quantized:
        return False
    dtypes = {nest.spec.operands[side.operand].dtype for side in (nest.left, nest.right)}
    if dtypes != {"f32"} or nest.spec.body[nest.contract].dtype != "f32":
        return False
    return not any(is_heavy(instr.op) for instr in nest.spec.body)  # functions of whole vectors are the faster ones


def packed_group(nest: Nest) -> int:
    """Neighbours of K that lie together in a packed right factor: as many as one instruction sums, a pair of bf16 (``vdpbf16ps``) or four
    bytes, one factor's unsigned and the other's signed (``vpdpbusd``), or the low-bit codes of 32 bits; where both factors are read by
    vectors, those that `stacked` puts into a lane, or none.
    """
    if nest.wise:
        return nest.stacked or 1
    if nest.right.format is not None:
        return nest.right.format.codes_a_word
    if is_bytes(nest):
        return 4
    return 2 if nest.spec.operands[nest.right.operand].dtype == "bf16" else 1


def is_codes(nest: Nest) -> bool:
    """Whether the packed right factor is quantized, or integers that are summed as floats: both become f32 in the kernel."""
    right = nest.right
    integers = nest.spec.operands[right.operand].dtype == "i8" and nest.spec.body[nest.contract].dtype == "f32"
    return (
        right.packed and not nest.wise and not nest.borders and bool(nest.reduction) and (right.quantized or integers)
    )


def filled_to(nest: Nest, target: Target) -> int:
    """To a multiple of how many elements a packed right factor's innermost sum is filled."""
    return step_of(nest) if form(nest, target) == "amx" else packed_group(nest)


def form(nest: Nest, target: Target) -> str:
    """``amx``: tile registers hold the sums (`amx_form`), ``amx_turned``: also of a factor that the kernel packs first; ``codes``: the
    right factor's integers or low-bit codes, packed, become floats; ``tiles``: columns are read where they lie, or packed; ``dots``: few
    rows, lanes along K; ``turned``: K is contiguous (or nothing is, or lines collide), and blocks of columns are copied next to each other
    first.
    """
    if takes_tiles(nest, target):
        return "amx"
    if packs_tiles(nest, target):
        return "amx_turned"
    if is_codes(nest):
        return "codes"
    if nest.right.packed or nest.wise or nest.column is None or not nest.reduction:
        return "tiles"
    if nest.stride(nest.right.load, nest.column).constant == 1:
        return "turned" if _collides(nest) else "tiles"
    rows, last = nest.size(nest.row).constant, nest.reduction[-1]
    if rows is None or rows > FEW_ROWS:
        return "turned"
    length = nest.size(last).constant
    contiguous = all(nest.stride(side.load, last).constant == 1 for side in (nest.left, nest.right))
    return "dots" if contiguous and (length is None or length >= lanes_of(nest, target)) else "tiles"


def _collides(nest: Nest) -> bool:
    """Whether the rows of the right factor lie whole pages apart, so that a panel's lines share a few sets of each cache and leave
    them before the next tile reads them again (1024 cubed: 0.62 of the peak in place, 0.73 copied), and enough rows pay for the copy.
    """
    step = nest.stride(nest.right.load, nest.reduction[-1]).constant
    rows, length = nest.size(nest.row).constant, nest.size(nest.reduction[-1]).constant
    if not step or length is None or rows is None:
        return False
    single = nest.spec.operands[nest.right.operand].dtype == "f32"
    return single and step * ITEM_SIZE["f32"] % PAGE == 0 and length >= MANY_STEPS and rows >= MANY_ROWS
