"""Square register tiles for pointwise kernels that read some operands transposed.

Where a load is contiguous along another dimension (``across``) than the vectors, a tile of ``lanes x lanes`` points is
loaded along that dimension and transposed in registers, instead of gathering each vector element by element.
"""

from __future__ import annotations

from collections.abc import Sequence

from effc.compiler.codegen.cpu.body import Body, Scope
from effc.compiler.codegen.cpu.loops.plan import Plan
from effc.compiler.codegen.cpu.text import Builder, Value
from effc.compiler.codegen.cpu.transpose import transpose


class Tiles:
    """Emits one row of tiles. ``pure``: the instructions to evaluate before the stores, in order."""

    def __init__(self, b: Builder, plan: Plan, body: Body, pure: Sequence[int], roots: Sequence[int]) -> None:
        self.b = b
        self.plan = plan
        self.body = body
        self.roots = roots
        self.across, self.vector = f"d{plan.across}", f"d{plan.vector}"
        self.shared = [i for i in pure if self.across not in plan.depends[i] and i not in plan.transposed]

    def row(self, scope: Scope, start: Value, end: Value) -> None:
        """Tiles at ``across`` = start … start + lanes - 1 and the vector dimension from 0 to ``end``, a multiple of
        lanes.
        """
        b, lanes = self.b, self.plan.lanes
        with b.loop(b.index(0), end, lanes) as loop:
            block = scope.block({})
            columns = block.lanes_of(self.vector, loop.index, lanes)
            for i in self.shared:
                self.body.value(i, columns)
            points = [columns.inside(block.block({self.across: b.add(start, t)})) for t in range(lanes)]
            for i in self.plan.transposed:
                steps = [block.block({self.vector: b.add(loop.index, j)}) for j in range(lanes)]
                loaded = [self.body.value(i, s.lanes_of(self.across, start, lanes)) for s in steps]
                for point, value in zip(points, transpose(b, loaded), strict=True):
                    point.values[i] = value
            for point in points:
                for i in self.roots:
                    self.body.perform(i, point)
