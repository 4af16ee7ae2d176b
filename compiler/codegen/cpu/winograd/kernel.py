"""The kernel of Winograd's method: transform a block's input, multiply it with a panel, transform the sums back.

A unit is one block of tiles under one panel of output channels of a group; a thread walks the panels of a group, and the groups of a
block, before the next one, so that it transforms a block's input once. Each thread has scratch memory of its own: 16 planes of transformed
input, ``[tile][channel]``, and 16 planes of sums, ``[tile][column]``.
"""

from __future__ import annotations

from dataclasses import replace

from effc.compiler.codegen.cpu.body import Body
from effc.compiler.codegen.cpu.contraction.ahead import Ahead
from effc.compiler.codegen.cpu.contraction.epilogue import Epilogue
from effc.compiler.codegen.cpu.contraction.factors import Step
from effc.compiler.codegen.cpu.contraction.tile import Tile
from effc.compiler.codegen.cpu.ops import OpEmitter
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.codegen.cpu.text import Builder, Value
from effc.compiler.codegen.cpu.threads import Share, parallel_kernel
from effc.compiler.codegen.cpu.winograd.form import SIDE
from effc.compiler.codegen.cpu.winograd.output import OutputTransform
from effc.compiler.codegen.cpu.winograd.plan import MOST_THREADS, Plan
from effc.compiler.codegen.cpu.winograd.tiles import Tiles
from effc.compiler.codegen.cpu.winograd.transforms import both_ways, input_line
from effc.compiler.ir.expr import as_expr, const
from effc.compiler.ir.spec import KernelSpec


class WinogradKernel:
    """Emits ``spec``, of which ``plan`` holds the parts and sizes; its last operand is the scratch memory."""

    def __init__(self, spec: KernelSpec, plan: Plan, target: Target) -> None:
        self.spec, self.plan, self.target = spec, plan, target
        self.b = Builder()

    def text(self) -> str:
        plan = self.plan
        units, cycles = plan.blocks * (plan.form.group_count * plan.panels), as_expr(plan.cycles)
        with parallel_kernel(self.b, self.spec, units, cycles, most=MOST_THREADS) as share:
            self._body(share)
        return self.b.text()

    def _body(self, share: Share) -> None:
        b, plan, nest = self.b, self.plan, self.plan.form.nest
        scratch = share.pointer(len(self.spec.operands) - 1)
        self.share = share
        self.inputs = b.element_pointer(scratch, b.mul(share.index, plan.share_elements), "f32")
        self.sums = b.element_pointer(self.inputs, b.index(SIDE * SIDE * plan.input_plane), "f32")
        self.step = Step(b, nest, plan.lanes, "f32", 1, False, OpEmitter(b, self.target))
        self.tiles = Tiles(b, plan, share)
        body = Body(b, nest.spec, self.target, share.pointer, share.symbols, lambda: share.error_cell)
        apart = (nest.column, *plan.form.groups)
        within = [i for i, dim in enumerate(nest.spec.dims) if dim.kind == "parallel" and i not in apart]
        self.output = OutputTransform(self.tiles, Epilogue(b, nest, body, within), self.sums)
        with b.loop(share.lo, share.hi, carried=[b.index(-1)]) as loop:
            part, panel = b.div(loop.index, plan.panels), b.rem(loop.index, plan.panels)
            block, group = b.div(part, plan.form.group_count), b.rem(part, plan.form.group_count)
            self.tiles.select(group)
            first = b.mul(block, plan.tiles)
            count = b.minimum(b.sub(self.tiles.total, first), plan.tiles)
            with b.when(b.compare("arith.cmpi", "ne", part, loop.carried[0])):
                self._transform_input(first, count)
            kernel = self._kernel(b.add(b.mul(group, plan.panels), panel))
            self._multiply(kernel, count)
            self.output.write(first, count, b.mul(panel, plan.nr), kernel)
            loop.yield_([part])

    def _kernel(self, panel: Value) -> Value:
        b, plan = self.b, self.plan
        base = self.share.pointer(plan.form.nest.right.operand)
        return b.element_pointer(base, b.mul(panel, SIDE * SIDE * plan.form.depth * plan.nr), "f32")

    def _transform_input(self, first: Value, count: Value) -> None:
        """Tiles ``first …`` of the input into the 16 planes."""
        b, plan = self.b, self.plan
        with b.loop(b.index(0), count) as loop:
            patch = self.tiles.patch(self.tiles.at(b.add(first, loop.index)))
            row = b.element_pointer(self.inputs, b.mul(loop.index, plan.row_stride), "f32")
            with patch.channels(plan.lanes) as (offset, number):
                given = [[b.load(p, self.step.type) for p in line] for line in patch.pointers(offset)]
                home = b.element_pointer(row, number, "f32")
                for i, line in enumerate(both_ways(b, given, input_line)):
                    for j, value in enumerate(line):
                        plane = b.index((i * SIDE + j) * plan.input_plane)
                        b.store(value, b.element_pointer(home, plane, "f32"))

    def _multiply(self, kernel: Value, count: Value) -> None:
        """16 products of the transformed input with the panel. Rows past ``count`` are computed too: nobody reads them."""
        b, plan = self.b, self.plan
        depth, vectors = plan.form.depth, plan.nr // plan.lanes
        rows = b.div(b.add(count, plan.mr - 1), plan.mr)
        tile = Tile(
            self.step, plan.mr, vectors, plan.row_stride, [const(depth)], [const(1)], [const(plan.nr)],
            self.share.symbols, plan.unroll, None, None, b.index(plan.lanes),
        )  # fmt: skip
        size = depth * plan.nr
        with b.loop(b.index(0), b.index(SIDE * SIDE)) as plane:
            left = b.element_pointer(self.inputs, b.mul(plane.index, plan.input_plane), "f32")
            right = b.element_pointer(kernel, b.mul(plane.index, size), "f32")
            out = b.element_pointer(self.sums, b.mul(plane.index, plan.sum_plane), "f32")
            with b.loop(b.index(0), rows) as loop:
                first = b.mul(loop.index, plan.mr)
                start = b.element_pointer(left, b.mul(first, plan.row_stride), "f32")
                home = b.element_pointer(out, b.mul(first, plan.nr), "f32")
                following = b.element_pointer(right, b.index(size), "f32")  # the next plane, or the next panel's first
                turns = plan.tiles // plan.mr
                ahead = Ahead.share(b, following, loop.index, turns, b.index(depth), 4 * plan.nr)
                for i, line in enumerate(replace(tile, ahead=ahead).run([start], right)):
                    for j, value in enumerate(line):
                        b.store(value, b.element_pointer(home, b.index(i * plan.nr + j * plan.lanes), "f32"))
