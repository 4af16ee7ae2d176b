"""Lanes are pixels of a band of the image (`band`), which is transposed into scratch memory; the rest is as in `rows`."""

from __future__ import annotations

from effc.compiler.codegen.cpu.body import Body, Scope
from effc.compiler.codegen.cpu.contraction.epilogue import Epilogue
from effc.compiler.codegen.cpu.sparse.rows import RowsKernel, Run, Tile
from effc.compiler.codegen.cpu.text import Value


class WindowKernel(RowsKernel):
    """A unit is a band and a share of the columns: ``first`` is its first line of outputs."""

    def _epilogues(self, body: Body) -> None:
        band = self.plan.bands
        self.early = self._early(body)
        within, given = (band.height.place, band.width.place), self.early.value if self.early else None
        self.along = Epilogue(self.b, self.nest, body, within, given)

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

    def _unit(self, outer: dict[str, Value], first: Value, run: Run) -> None:
        b, plan, lanes = self.b, self.plan, self.plan.lanes
        lines = b.minimum(b.sub(b.index(plan.bands.height.outputs), first), plan.bands.lines)
        end = b.mul(lines, plan.bands.pitch)
        with b.loop(b.index(0), end, plan.tile_rows) as tile:
            base = b.element_pointer(self.staged, tile.index, "f32")

            def write(run: Run, waiting: Value, number: Value = tile.index) -> None:
                self._write(outer, first, number, end, run, waiting)

            vectors = Tile(base, b.index(plan.bands.plane), [lanes] * plan.height, None)
            self._wait(vectors, run, self.waiting, write)

    def _write(self, outer: dict[str, Value], line: Value, first: Value, end: Value, run: Run, waiting: Value) -> None:
        """What follows the waiting sums of the outputs of a tile from number ``first`` on, of a band from ``line`` on, up to ``end``."""
        b, plan, lanes, band = self.b, self.plan, self.plan.lanes, self.plan.bands
        root = Scope(dims=dict(outer))
        with self._columns(run, waiting) as (column, masks, corner):
            shared = self.along.shared(root, [column], masks, lanes)
            with b.loop(b.index(0), b.index(plan.tile_rows), lanes) as block:
                for i, total in enumerate(self._square(b.element_pointer(corner, block.index, "f32"))):
                    number = b.add(b.add(first, block.index), i)
                    x = b.rem(number, band.pitch)
                    inside = b.compare("arith.cmpi", "slt", x, b.index(band.width.outputs))
                    before = b.compare("arith.cmpi", "slt", number, end)
                    with b.when(b.op("arith.andi", inside, before)):
                        y = b.add(line, b.div(number, band.pitch))
                        place = Scope(dims={**outer, f"d{band.height.place}": y})
                        self.along.row(place, x, [column], masks, shared, [total])
