"""The last wave of tiles, where it leaves most processors idle: its tiles are cut along the sum, so that all have a part (as stream-K does
with fixed borders, hence in a fixed order).

Three launches: the tiles of whole waves; the parts of the others, into scratch memory, ``[part][tile][row][column]``; their sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch_mlir import ir

from effc.compiler.codegen.gpu.builder import Builder
from effc.compiler.codegen.gpu.contraction.schedule import Tiling
from effc.compiler.codegen.gpu.indices import evaluated
from effc.compiler.ir.expr import Expr, var

#: Rows of a tile that one program sums: parts are read by many.
STRIP = 16


@dataclass(frozen=True)
class Share:
    """``count`` tiles from tile ``first`` on, each in ``parts`` of the sum; ``adds``: those that lie in scratch memory are added."""

    first: int
    count: int
    parts: int = 1
    adds: bool = False


def address(share: Share, tiling: Tiling) -> Expr:
    """In scratch memory, of part ``p`` of tile ``t`` of the share, row ``m`` and column ``n`` of a tile of ``tiling``."""
    return ((var("p") * share.count + var("t")) * tiling.bm + var("m")) * tiling.bn + var("n")


def stored(
    b: Builder, scratch: ir.Value, share: Share, tiling: Tiling, tile: ir.Value, part: ir.Value, total: ir.Value
) -> None:
    """A part's sums into scratch memory."""
    places = {"p": part, "t": tile, "m": b.range(tiling.bm, 0, 2), "n": b.range(tiling.bn, 1, 2)}
    b.store(b.pointers(scratch, evaluated(b, address(share, tiling), places, "i64")), total, None)


def added(b: Builder, scratch: ir.Value, share: Share, tiling: Tiling, tile: ir.Value, strip: ir.Value) -> ir.Value:
    """The sum of a tile's parts, in order, of the rows of a strip."""
    rows = b.op("arith.addi", b.op("arith.muli", strip, b.constant(STRIP, "i32")), b.range(STRIP, 0, 2))

    def step(part: ir.Value, carried: Sequence[ir.Value]) -> list[ir.Value]:
        places = {"p": part, "t": tile, "m": rows, "n": b.range(tiling.bn, 1, 2)}
        found = b.load(b.pointers(scratch, evaluated(b, address(share, tiling), places, "i64")))
        return [b.op("arith.addf", carried[0], found)]

    zero = b.constant(0, "f32", (STRIP, tiling.bn))
    (total,) = b.loop(b.constant(0, "i32"), b.constant(share.parts, "i32"), 1, [zero], step)
    return total
