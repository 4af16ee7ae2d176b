"""Lanes are pixels of a band of the image (`band`), which is transposed into scratch memory; the rest is as in `rows`."""

from __future__ import annotations

from effc.compiler.codegen.cpu.body import Body, Scope
from effc.compiler.codegen.cpu.contraction.epilogue import Epilogue
from effc.compiler.codegen.cpu.sparse.rows import RowsKernel
from effc.compiler.codegen.cpu.sparse.walk import vector_at
from effc.compiler.codegen.cpu.text import Value
from effc.compiler.codegen.cpu.transpose import transpose


class WindowKernel(RowsKernel):
    """A unit is a band and a share of the columns: ``first`` is its first line of outputs."""

    def _epilogues(self, body: Body) -> None:
        band = self.plan.bands
        self.along = Epilogue(self.b, self.nest, body, (band.height.place, band.width.place))

    def _stage(self, outer: dict[str, Value], first: Value) -> None:
        b, band, lanes = self.b, self.plan.bands, self.plan.lanes
        height, width = band.height, band.width
        base = self._left({**outer, f"d{height.place}": first})
        lowest = b.sub(b.index(height.stride * (height.outputs - 1) + height.reach), b.mul(first, height.stride))
        with b.loop(b.index(0), b.index(band.pixels), lanes) as loop:
            lines = []
            for i in range(lanes):
                pixel = b.minimum(b.add(loop.index, i), band.pixels - 1)
                phase, inside = b.div(pixel, band.phase), b.rem(pixel, band.phase)
                y = b.add(b.mul(b.div(inside, band.pitch), height.stride), b.div(phase, width.phases))
                x = b.add(b.mul(b.rem(inside, band.pitch), width.stride), b.rem(phase, width.phases))
                y, x = b.minimum(y, lowest), b.minimum(x, width.stride * (width.outputs - 1) + width.reach)
                lines.append(b.element_pointer(base, b.add(b.mul(y, height.unit), b.mul(x, width.unit)), "f32"))
            self._turn(lines, b.element_pointer(self.staged, loop.index, "f32"), band.plane, self.form.sizes[-1])

    def _offset(self, k: Value, column: int, step: Value) -> Value:
        return self.b.add(k, column * self.plan.bands.plane)

    def _unit(self, outer: dict[str, Value], first: Value, run: tuple[Value, Value]) -> None:
        b, plan = self.b, self.plan
        lines = b.minimum(b.sub(b.index(plan.bands.height.outputs), first), plan.bands.lines)
        end = b.mul(lines, plan.bands.pitch)
        with b.loop(b.index(0), end, plan.tile_rows) as tile:
            base = b.element_pointer(self.staged, tile.index, "f32")
            self._wait(base, b.index(plan.bands.plane), plan.height, None, run, self.waiting)
            self._write(outer, first, tile.index, end, run)

    def _write(self, outer: dict[str, Value], line: Value, first: Value, end: Value, run: tuple[Value, Value]) -> None:
        """What follows the waiting sums of the outputs of a tile from number ``first`` on, of a band from ``line`` on, up to ``end``."""
        b, plan, lanes, band = self.b, self.plan, self.plan.lanes, self.plan.bands
        size = self.form.sparsity.rows
        start, stop = b.mul(run[0], size), b.minimum(b.mul(run[1], size), self.form.columns)
        root = Scope(dims=dict(outer))
        with b.loop(start, stop, lanes) as columns:
            mask = b.first_lanes(lanes, b.minimum(b.sub(stop, columns.index), lanes))
            shared = self.along.shared(root, [columns.index], [mask], lanes)
            corner = b.element_pointer(self.waiting, b.mul(b.sub(columns.index, start), plan.tile_rows), "f32")
            with b.loop(b.index(0), b.index(plan.tile_rows), lanes) as block:
                at = b.element_pointer(corner, block.index, "f32")
                pointers = [b.element_pointer(at, b.index(i * plan.tile_rows), "f32") for i in range(lanes)]
                for i, total in enumerate(transpose(b, [vector_at(b, p, lanes, None) for p in pointers])):
                    number = b.add(b.add(first, block.index), i)
                    x = b.rem(number, band.pitch)
                    inside = b.compare("arith.cmpi", "slt", x, b.index(band.width.outputs))
                    before = b.compare("arith.cmpi", "slt", number, end)
                    with b.when(b.op("arith.andi", inside, before)):
                        y = b.add(line, b.div(number, band.pitch))
                        place = Scope(dims={**outer, f"d{band.height.place}": y})
                        self.along.row(place, x, [columns.index], [mask], shared, [total])
