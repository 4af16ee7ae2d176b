"""Back from sums to outputs, and what follows the convolution.

Winograd's differences turn an infinite input into NaN, and may overflow where the convolution itself does not. So a vector of
outputs that is not finite is computed again, directly, from the input and from the taps behind the transformed kernel: NaN and
infinity are then the convolution's own. (An infinite weight has no transform: it gives NaN.)
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from effc.compiler.codegen.cpu.body import Scope
from effc.compiler.codegen.cpu.contraction.epilogue import Epilogue
from effc.compiler.codegen.cpu.text import Value, vector_type
from effc.compiler.codegen.cpu.winograd.form import OUTPUTS, SIDE, TAPS
from effc.compiler.codegen.cpu.winograd.tiles import Tiles
from effc.compiler.codegen.cpu.winograd.transforms import Grid, both_ways, kernel_line, output_line


class OutputTransform:
    """``sums``: the thread's 16 planes."""

    def __init__(self, tiles: Tiles, epilogue: Epilogue, sums: Value) -> None:
        self.tiles, self.epilogue, self.sums = tiles, epilogue, sums
        self.b, self.plan = tiles.b, tiles.plan
        self.type = vector_type(self.plan.lanes, "f32")

    def write(self, first: Value, count: Value, column: Value, kernel: Value) -> None:
        """Tiles ``first …`` of the panel whose first column is ``column``."""
        b, plan, nest = self.b, self.plan, self.plan.form.nest
        with b.loop(b.index(0), b.index(plan.nr), plan.lanes) as vectors:
            start = b.add(column, vectors.index)
            mask = None
            if plan.columns % plan.nr:
                mask = b.first_lanes(plan.lanes, b.maximum(b.sub(b.index(plan.columns), start), 0))
            scope = Scope(dims=dict(self.tiles.group)).lanes_of(f"d{nest.column}", start, plan.lanes, mask)
            shared = self.epilogue.columns(scope)
            with b.loop(b.index(0), count) as loop:
                at = self.tiles.at(b.add(first, loop.index))
                place = b.add(b.mul(loop.index, plan.nr), vectors.index)
                outputs = self._outputs(place, at, b.element_pointer(kernel, vectors.index, "f32"))
                self._finish(at, start, mask, shared, outputs)

    def _outputs(self, place: Value, at: dict[str, Value], kernel: Value) -> Grid:
        b, plan = self.b, self.plan
        home = b.element_pointer(self.sums, place, "f32")
        sums = self._grid(home, plan.sum_plane)
        fast = both_ways(b, sums, output_line)
        flat = [v for line in fast for v in line]
        total = b.op("arith.addf", b.op("arith.addf", flat[0], flat[1]), b.op("arith.addf", flat[2], flat[3]))
        rest = b.op("arith.subf", total, total)  # NaN where anything was infinite or NaN, else 0
        odd = b.compare("arith.cmpf", "uno", rest, rest)
        any_odd = b.emit(f"vector.reduction <or>, {odd.name} : {odd.type} into i1", "i1")
        found = b.choose(any_odd, [self.type] * len(flat), lambda: self._directly(at, kernel), lambda: flat)
        return [found[:OUTPUTS], found[OUTPUTS:]]

    def _grid(self, home: Value, plane: int) -> Grid:
        b = self.b
        return [
            [b.load(b.element_pointer(home, b.index((i * SIDE + j) * plane), "f32"), self.type) for j in range(SIDE)]
            for i in range(SIDE)
        ]

    def _directly(self, at: dict[str, Value], kernel: Value) -> Sequence[Value]:
        """The tile's outputs, channel by channel, in memory behind the sums."""
        b, plan = self.b, self.plan
        patch = self.tiles.patch(at)
        after = SIDE * SIDE * plan.sum_plane
        home = [b.element_pointer(self.sums, b.index(after + k * plan.lanes), "f32") for k in range(OUTPUTS * OUTPUTS)]
        for pointer in home:
            b.store(b.constant(0, "f32", plan.lanes), pointer)
        with patch.channels(1) as (offset, number):
            given = [[b.broadcast(b.load(p, "f32"), plan.lanes) for p in line] for line in patch.pointers(offset)]
            base = b.element_pointer(kernel, b.mul(number, plan.nr), "f32")
            taps = both_ways(b, self._grid(base, plan.form.depth * plan.nr), kernel_line)
            for k, pointer in enumerate(home):
                total = b.load(pointer, self.type)
                for r in range(TAPS):
                    for s in range(TAPS):
                        total = b.op("math.fma", given[k // OUTPUTS + r][k % OUTPUTS + s], taps[r][s], total)
                b.store(total, pointer)
        return [b.load(pointer, self.type) for pointer in home]

    def _finish(
        self, at: dict[str, Value], column: Value, mask: Value | None, shared: dict[int, Value], outputs: Grid
    ) -> None:
        """The rest of the body, for each output that exists."""
        b, form = self.b, self.plan.form
        (height, _), (width, _) = form.height, form.width
        for i, line in enumerate(outputs):
            for j, total in enumerate(line):
                conditions = [self.tiles.exists(at, height, i), self.tiles.exists(at, width, j)]
                with ExitStack() as stack:
                    for condition in conditions:
                        if condition is not None:
                            stack.enter_context(b.when(condition))
                    point = {**at, f"d{height}": b.add(at[f"d{height}"], i), f"d{width}": b.add(at[f"d{width}"], j)}
                    scope = Scope(dims=point).lanes_of(f"d{form.nest.column}", column, self.plan.lanes, mask)
                    scope.values.update(shared)
                    self.epilogue.finish(scope, total)
