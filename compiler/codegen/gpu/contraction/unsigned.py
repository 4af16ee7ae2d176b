"""Products of unsigned bytes: tensor cores multiply them less 128, as signed ones; what is missing is 128 times the other factor's sums.

These are products with ones, of as few equal rows as tensor cores take.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch_mlir import ir

from effc.compiler.codegen.gpu.builder import Builder
from effc.compiler.codegen.gpu.contraction.roles import Roles
from effc.compiler.codegen.gpu.contraction.schedule import Tiling

_ROWS = 16


class MissingSums:
    """Of a tile of ``roles``' product: for each unsigned factor, the left one first, a tile of sums that the loop carries."""

    def __init__(self, b: Builder, roles: Roles, tiling: Tiling) -> None:
        self.b, self.tiling = b, tiling
        self.sides = [side for side, factor in enumerate((roles.left, roles.right)) if factor.unsigned]

    def start(self) -> list[ir.Value]:
        """Zeros."""
        shapes = ((_ROWS, self.tiling.bn), (self.tiling.bm, _ROWS))
        return [self.b.constant(0, "i32", shapes[side]) for side in self.sides]

    def step(self, left: ir.Value, right: ir.Value, carried: Sequence[ir.Value]) -> list[ir.Value]:
        """``carried`` and a block of both factors."""
        b, bk = self.b, self.tiling.bk
        ones = {0: (_ROWS, bk), 1: (bk, _ROWS)}
        found = []
        for side, tile in zip(self.sides, carried, strict=True):
            one = b.constant(1, "i8", ones[side])
            found.append(b.dot(one, right, tile) if side == 0 else b.dot(left, one, tile))
        return found

    def added(self, total: ir.Value, carried: Sequence[ir.Value], points: ir.Value) -> ir.Value:
        """``total`` of signed factors as that of the true ones; ``points``: how many products it sums."""
        b, missing = self.b, self.b.constant(128, "i32")
        for side, tile in zip(self.sides, carried, strict=True):
            (sums,) = b.reduce([tile], side, lambda x, y: [b.op("arith.maxsi", x[0], y[0])])
            total = b.op("arith.addi", total, b.op("arith.muli", sums, missing))
        if len(self.sides) == 2:
            total = b.op("arith.addi", total, b.op("arith.muli", points, b.op("arith.muli", missing, missing)))
        return total
