"""Which of a packed contraction's loops is outside: that of the panels, or that of the row tiles.

With the panels outside, a panel stays in L2 while all rows pass under it, and the rows come again for each panel. That is best where
the factor is large. Where L2 holds all of the factor, the other order reads the rows once, writes each row of the output whole, and
the factor comes from L2: ResNet-50 at batch 8 takes 0.91 of the time on a Zen 5 core of 1 MiB (137.3 to 125.4 ms).

Threads divide the outer loop. Those that divide rows find in their own L2 what they wrote, in the next kernel that divides rows too; those
that divide panels read half of each other's. Where the result is larger than the factor, sharing the factor is the cheaper.
"""

from __future__ import annotations

from effc.compiler.codegen.cpu.contraction.roles import Nest
from effc.compiler.ir.expr import product
from effc.compiler.ir.spec import ITEM_SIZE

#: A factor, or a panel of it, is reused from L2 while it fills at most this much of 1 MiB; the rows need the rest. A target does not
#: describe its caches: objects are made for instruction sets, and run on cores whose L2 differs (1 to 2 MiB on current servers).
L2_SHARE = 640 * 1024
#: Left factors up to this size stay in L2 beside a panel, and threads that divide the panels then read the right one once.
NEAR_ROWS = 256 * 1024


def order(nest: Nest, nr: int) -> str:
    """``rows`` or ``panels``, whichever is outside, under panels of ``nr`` columns."""
    if nest.wise:  # each of its columns has rows of its own: nothing is read twice in either order
        return "rows"
    if not nest.right.packed:
        return "panels"
    steps = product([nest.spec.dims[k].size for k in nest.reduction])
    columns, rows = nest.size(nest.column).constant, nest.size(nest.row)
    if steps.constant is None or columns is None:
        return "panels"
    others = product([nest.spec.dims[i].size for i in nest.outer if i not in nest.batch])
    factor = -(-columns // nr) * nr * steps.constant * _item(nest, nest.right.operand)
    left = rows * others * steps * _item(nest, nest.left.operand)
    result = rows * others * columns * _item(nest, nest.left.operand)
    if left.constant is None or result.constant is None:
        return "panels"  # rows known only at run time may be few
    return "rows" if factor <= L2_SHARE and (left.constant > NEAR_ROWS or result.constant >= factor) else "panels"


def batches_inside(nest: Nest, nr: int) -> bool:
    """Whether batches are walked inside the other outer dims: groups of channels, which lie side by side in each row of the left factor, so
    that it is read once, where L2 holds the right factor of all of them.
    """
    elements = product([nest.spec.dims[k].size for k in (*nest.reduction, *nest.batch)]).constant
    columns, across = nest.size(nest.column).constant, nest.stride(nest.left.load, nest.row).constant
    if elements is None or columns is None or across is None or not nest.right.packed:
        return False
    if -(-columns // nr) * nr * elements * _item(nest, nest.right.operand) > L2_SHARE:
        return False
    strides = [nest.stride(nest.left.load, i).constant for i in nest.batch]
    return all(s is not None and s < across for s in strides)


def _item(nest: Nest, operand: int) -> int:
    return ITEM_SIZE[nest.spec.operands[operand].dtype]
