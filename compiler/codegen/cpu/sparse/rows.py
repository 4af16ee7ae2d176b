"""Lanes are rows: vectors of the dense factor's rows times one stored element, broadcast (Elsen et al., "Fast Sparse ConvNets", 2020).

Where rows are not contiguous in the dense factor, a tile of it is transposed into scratch memory first, ``[sum][rows]``; where they are
not in the result, or the sum is walked in parts, sums wait there, ``[columns][rows]``, and are transposed on their way into the
epilogue.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from effc.compiler.codegen.cpu.body import Body, Scope
from effc.compiler.codegen.cpu.contraction.epilogue import Epilogue
from effc.compiler.codegen.cpu.contraction.touch import touch
from effc.compiler.codegen.cpu.sparse.ahead import Ahead, pays
from effc.compiler.codegen.cpu.sparse.early import Early
from effc.compiler.codegen.cpu.sparse.form import LINE, with_rows_as_lanes
from effc.compiler.codegen.cpu.sparse.kernel import SparseKernel
from effc.compiler.codegen.cpu.sparse.walk import Add, vector_at
from effc.compiler.codegen.cpu.text import Value, vector_type
from effc.compiler.codegen.cpu.threads import Share
from effc.compiler.codegen.cpu.transpose import transposed_rows

#: Rows of blocks, from the first to before the last.
Run = tuple[Value, Value]
#: ``write(run, waiting)``: what follows the sums of a run, which wait in scratch memory.
Write = Callable[[Run, Value], None]


@dataclass(frozen=True)
class Tile:
    """Vectors of rows of the dense factor from ``base`` on, ``step`` elements apart for neighbours of the sum. ``widths``: of each vector
    the rows that are summed. ``mask``: those of the last that are read, None for all.
    """

    base: Value
    step: Value
    widths: Sequence[int]
    mask: Value | None


class RowsKernel(SparseKernel):
    """Units are numbered with the shares innermost: a thread takes all of its shares of a tile at once, so that a part of the tile serves
    them all from the first-level cache.
    """

    def _body(self, share: Share) -> None:
        b, plan, nest = self.b, self.plan, self.nest
        self._epilogues(self._new_body())
        if plan.share_elements:
            base = share.pointer(len(self.spec.operands) - 1)
            self.staged = b.element_pointer(base, b.mul(share.index, plan.share_elements), "f32")
            self.waiting = b.element_pointer(self.staged, b.index(plan.staged_elements), "f32")
        if plan.waits and self.form.by_columns:
            self.square = b.stack(plan.lanes * plan.lanes, "f32")
        axes = [*self._outer_axes(), ("tile", plan.tiles)]
        last = b.div(b.sub(b.add(share.hi, plan.shares), 1), plan.shares)
        with b.loop(b.div(share.lo, plan.shares), last) as loop:
            at, unit = self._indices(loop.index, axes), b.mul(loop.index, plan.shares)
            outer = {f"d{i}": at[f"d{i}"] for i in nest.outer}
            first = b.mul(at["tile"], plan.unit_rows)
            if plan.staged:
                self._stage(outer, first)
            shares = b.maximum(b.sub(share.lo, unit), 0), b.minimum(b.sub(share.hi, unit), plan.shares)
            self._shares(outer, first, shares)

    def _epilogues(self, body: Body) -> None:
        self.early = self._early(body)
        self.across = Epilogue(self.b, with_rows_as_lanes(self.nest), body)
        self.along = Epilogue(self.b, self.nest, body, given=self.early.value if self.early else None)

    def _early(self, body: Body) -> Early | None:
        """What is done to sums before they wait, where they are transposed on their way out."""
        return Early.of(self.b, self.nest, body) if self.plan.waits and self.form.by_columns else None

    def _shares(self, outer: dict[str, Value], first: Value, shares: tuple[Value, Value]) -> None:
        """The tile whose first row is ``first``, and the columns of ``shares``."""
        self._unit(outer, first, self.stored.run(*shares))

    # -- tiles ------------------------------------------------------------------------------------------------------
    def _unit(self, outer: dict[str, Value], first: Value, run: Run) -> None:
        """The rows from ``first`` on: a whole tile, or what is left, whose last vector is masked."""
        b, plan, lanes = self.b, self.plan, self.plan.lanes
        rows = self.form.rows.constant
        left = b.sub(self._value(self.form.rows), first)

        def whole() -> list[Value]:
            self._tile(outer, first, b.index(0), plan.height, None, run)
            return []

        def rest() -> list[Value]:
            if rows is not None:
                vectors = -(-(rows % plan.tile_rows) // lanes)
                mask = b.first_lanes(lanes, b.sub(left, (vectors - 1) * lanes)) if rows % lanes else None
                self._tile(outer, first, b.index(0), vectors, mask, run)
                return []
            with b.loop(b.index(0), left, lanes) as loop:
                mask = b.first_lanes(lanes, b.minimum(b.sub(left, loop.index), lanes))
                self._tile(outer, b.add(first, loop.index), loop.index, 1, mask, run)
            return []

        if rows is not None and rows % plan.tile_rows == 0:
            whole()
        elif rows is not None and rows < plan.tile_rows:
            rest()
        else:
            b.choose(b.compare("arith.cmpi", "sge", left, b.index(plan.tile_rows)), (), whole, rest)

    def _tile(
        self,
        outer: dict[str, Value],
        first: Value,
        inside: Value,
        vectors: int,
        mask: Value | None,
        run: Run,
    ) -> None:
        """``vectors`` vectors of rows from ``first`` on, which is row ``inside`` of the tile, and the columns of a run."""
        b, plan, lanes = self.b, self.plan, self.plan.lanes
        masks = None if mask is None else [*[b.constant(True, "i1", lanes)] * (vectors - 1), mask]
        if plan.staged:
            widths = [lanes] * (vectors - 1) + [lanes if mask is None else plan.rest]
            tile = Tile(b.element_pointer(self.staged, inside, "f32"), b.index(plan.tile_rows), widths, None)
        else:
            base = self._left({**outer, **self._named(self.nest.row, first)})
            tile = Tile(base, self._value(self.form.step), [lanes] * vectors, mask)
        if not plan.waits:
            add, zeros = self._adder(tile), self._zeros(tile)
            with b.loop(*run) as loop:
                self._finish(outer, first, loop.index, masks, self.stored.sums(b.index(0), loop.index, zeros, add))
            return

        def write(run: tuple[Value, Value], waiting: Value) -> None:
            if self.form.by_columns:
                self._write_by_columns(outer, first, vectors, run, waiting)
            else:
                self._write_by_rows(outer, first, vectors, masks, run, waiting)

        ahead = self._ahead(outer, first, vectors)
        self._wait(tile, run, b.element_pointer(self.waiting, inside, "f32"), write, ahead)

    def _ahead(self, outer: dict[str, Value], first: Value, vectors: int) -> Ahead | None:
        """What is fetched while the columns of the tile from row ``first`` on are summed; None where it is small, or not contiguous."""
        b, plan, form, nest = self.b, self.plan, self.form, self.nest
        together = nest.stride(nest.left.load, nest.row).constant == form.sum and not form.planes
        if not (form.by_columns and together and pays(plan)):
            return None
        after = self._left({**outer, **self._named(nest.row, b.add(first, plan.tile_rows))})

        def lines(row: Value, column: Value, count: int) -> None:
            at = {**outer, **self._named(nest.row, b.add(first, row)), **self._named(nest.column, column)}
            touch(b, nest, self.share, at, count, plan.lanes)

        return Ahead(b, after, -(-plan.tile_rows * form.sum // LINE), lines, vectors * plan.lanes)

    def _wait(self, tile: Tile, run: Run, waiting: Value, write: Write, ahead: Ahead | None = None) -> None:
        """Leave the sums of a run in scratch memory. Those of all parts but the last wait for the whole run; each group of columns is
        written when the last is added to it, from the first-level cache.
        """
        b, plan, vectors, last = self.b, self.plan, len(tile.widths), self.plan.parts - 1
        add, zeros = self._adder(tile), self._zeros(tile)

        def sums(part: Value, row: Value, waiting: Value, run: Run, *, more: bool, whole: bool) -> None:
            totals = self.stored.sums(part, row, zeros, add)
            places = [self._place(waiting, run, row, i, vectors) for i in range(len(totals))]
            if more:
                waited = [b.load(at, total.type) for at, total in zip(places, totals, strict=True)]
                totals = [b.op("arith.addf", x, total) for x, total in zip(waited, totals, strict=True)]
            for at, total in zip(places, self._finished(row, totals) if whole else totals, strict=True):
                b.store(total, at)

        if last:
            with b.loop(*run) as loop:
                sums(b.index(0), loop.index, waiting, run, more=False, whole=False)
        if last > 1:
            with b.loop(b.index(1), b.index(last)) as part, b.loop(*run) as loop:
                sums(part.index, loop.index, waiting, run, more=True, whole=False)
        with b.loop(*run, plan.group) as loop:
            group = loop.index, b.minimum(b.add(loop.index, plan.group), run[1])
            here = self._place(waiting, run, group[0], 0, vectors) if last else waiting
            with b.loop(*group) as row:
                if ahead is not None:
                    ahead.inputs(row.index, self.form.blocks)
                    ahead.results(b.mul(group[0], self.form.sparsity.rows), b.sub(row.index, group[0]), plan.group)
                sums(b.index(last), row.index, here, group, more=last > 0, whole=True)
            write(group, here)

    def _finished(self, row: Value, totals: list[Value]) -> list[Value]:
        """What waits in the place of the sums of a row of blocks; columns beyond the last repeat what follows the last one's."""
        b, size = self.b, self.form.sparsity.rows
        if self.early is None:
            return totals
        vectors, found = len(totals) // size, list[Value]()
        for i in range(size):
            column = b.add(b.mul(row, size), i)
            inside = column if self.form.columns % size == 0 else b.minimum(column, self.form.columns - 1)
            found += self.early.apply(inside, totals[i * vectors : (i + 1) * vectors])
        return found

    def _place(self, waiting: Value, run: Run, row: Value, i: int, vectors: int) -> Value:
        """Where sum ``i`` of a row of blocks waits."""
        b = self.b
        column = b.add(b.mul(b.sub(row, run[0]), self.form.sparsity.rows), i // vectors)
        offset = b.add(b.mul(column, self.plan.tile_rows), i % vectors * self.plan.lanes)
        return b.element_pointer(waiting, offset, "f32")

    def _zeros(self, tile: Tile) -> list[Value]:
        """Of the sums of a row of blocks."""
        return [self.b.constant(0, "f32", width) for width in tile.widths] * self.form.sparsity.rows

    def _adder(self, tile: Tile) -> Add:
        b, plan, size, vectors = self.b, self.plan, self.form.sparsity.rows, len(tile.widths)

        def add(sums: Sequence[Value], k: Value, values: Value, column: int) -> list[Value]:
            at = b.element_pointer(tile.base, self._offset(k, column, tile.step), "f32")
            rows = [
                vector_at(
                    b,
                    b.element_pointer(at, b.index(j * plan.lanes), "f32"),
                    width,
                    tile.mask if j == vectors - 1 else None,
                )
                for j, width in enumerate(tile.widths)
            ]
            found = []
            for i in range(size):
                w = b.load(b.element_pointer(values, b.index(column * size + i), "f32"), "f32")
                factors = {width: b.broadcast(w, width) for width in {*tile.widths}}
                found += [
                    b.op("math.fma", x, factors[width], sums[i * vectors + j])
                    for j, (x, width) in enumerate(zip(rows, tile.widths, strict=True))
                ]
            return found

        return add

    def _offset(self, k: Value, column: int, step: Value) -> Value:
        """Elements from the start of the sum to a column of a block, of which ``k`` is said."""
        if self.plan.step is None:
            return self.b.mul(self.b.add(k, column), step)
        return self.b.add(k, column * self.plan.step)

    # -- results ----------------------------------------------------------------------------------------------------
    def _finish(
        self, outer: dict[str, Value], first: Value, row: Value, masks: Sequence[Value] | None, sums: Sequence[Value]
    ) -> None:
        """What follows the sums of a row of blocks, by vectors of rows."""
        b, plan, form = self.b, self.plan, self.form
        size, vectors = form.sparsity.rows, len(sums) // form.sparsity.rows
        places = [b.add(first, j * plan.lanes) for j in range(vectors)]
        for i in range(size):
            column, totals = b.add(b.mul(row, size), i), sums[i * vectors : (i + 1) * vectors]

            def write(column: Value = column, totals: Sequence[Value] = totals) -> None:
                self.across.write(outer, [column], places, masks, [totals])

            if form.columns % size and i >= form.columns % size:
                with b.when(b.compare("arith.cmpi", "slt", column, b.index(form.columns))):
                    write()
            else:
                write()

    def _write_by_rows(
        self,
        outer: dict[str, Value],
        first: Value,
        vectors: int,
        masks: Sequence[Value] | None,
        run: Run,
        waiting: Value,
    ) -> None:
        """What follows the waiting sums of a run, by vectors of rows."""
        b, count = self.b, self.form.sparsity.rows * vectors
        type_ = vector_type(self.plan.lanes, "f32")
        with b.loop(*run) as loop:
            sums = [b.load(self._place(waiting, run, loop.index, i, vectors), type_) for i in range(count)]
            self._finish(outer, first, loop.index, masks, sums)

    def _write_by_columns(self, outer: dict[str, Value], first: Value, vectors: int, run: Run, waiting: Value) -> None:
        """What follows the waiting sums of the columns of a run, by vectors of columns: squares are transposed."""
        b, lanes = self.b, self.plan.lanes
        rows, root = self._value(self.form.rows), Scope(dims=dict(outer))
        with self._columns(run, waiting) as (column, masks, line):
            shared = self.along.shared(root, [column], masks, lanes)
            with b.loop(b.index(0), b.index(vectors * lanes), lanes) as block:
                totals = self._square(b.element_pointer(line, block.index, "f32"))
                row = b.add(first, block.index)
                left = b.sub(rows, row)

                def write(row: Value, total: Value) -> None:
                    self.along.row(root, row, [column], masks, shared, [total])

                def whole(row: Value = row, totals: Sequence[Value] = totals) -> list[Value]:
                    for i, total in enumerate(totals):
                        write(b.add(row, i), total)
                    return []

                def rest(row: Value = row, totals: Sequence[Value] = totals, left: Value = left) -> list[Value]:
                    for i, total in enumerate(totals):
                        b.store(total, b.element_pointer(self.square, b.index(i * lanes), "f32"))
                    with b.loop(b.index(0), left) as each:
                        at = b.element_pointer(self.square, b.mul(each.index, lanes), "f32")
                        write(b.add(row, each.index), vector_at(b, at, lanes, None))
                    return []

                if self.form.rows.constant is not None and self.form.rows.constant % lanes == 0:
                    whole()
                else:
                    b.choose(b.compare("arith.cmpi", "sge", left, b.index(lanes)), (), whole, rest)

    @contextmanager
    def _columns(self, run: Run, waiting: Value) -> Iterator[tuple[Value, list[Value] | None, Value]]:
        """A loop over vectors of columns of a run: the first column, masks where not all are columns of it, and where its sums wait."""
        b, form, lanes = self.b, self.form, self.plan.lanes
        size = form.sparsity.rows
        start, end = b.mul(run[0], size), b.minimum(b.mul(run[1], size), form.columns)
        whole = form.columns % lanes == 0 and self.plan.group * size % lanes == 0
        with b.loop(start, end, lanes) as columns:
            masks = None if whole else [b.first_lanes(lanes, b.minimum(b.sub(end, columns.index), lanes))]
            inside = b.mul(b.sub(columns.index, start), self.plan.tile_rows)
            yield columns.index, masks, b.element_pointer(waiting, inside, "f32")

    def _square(self, corner: Value) -> list[Value]:
        """The sums of a vector of columns that wait from ``corner`` on: a vector for each of as many rows."""
        b, pitch = self.b, self.plan.tile_rows
        return transposed_rows(
            b, [b.element_pointer(corner, b.index(i * pitch), "f32") for i in range(self.plan.lanes)]
        )

    # -- staging ----------------------------------------------------------------------------------------------------
    def _stage(self, outer: dict[str, Value], first: Value) -> None:
        """A tile of the dense factor from row ``first`` on into scratch memory."""
        left = self.b.sub(self._value(self.form.rows), first)
        with self.b.loop(self.b.index(0), self.b.minimum(left, self.plan.tile_rows), self.plan.lanes) as vectors:
            row, home = self.b.add(first, vectors.index), self.b.element_pointer(self.staged, vectors.index, "f32")
            if self.form.planes:
                self._copy(outer, row, home)
            else:
                self._turn(self._clamped_lines(outer, row), home, self.plan.tile_rows, self.form.sum)

    def _copy(self, outer: dict[str, Value], row: Value, home: Value) -> None:
        """One vector of rows of every plane; zeros beyond the last row."""
        b, lanes, step = self.b, self.plan.lanes, self._value(self.form.step)
        left = b.sub(self._value(self.form.rows), row)
        mask = b.first_lanes(lanes, b.maximum(b.minimum(left, lanes), 0))
        base = self._left({**outer, **self._named(self.nest.row, row)})
        with b.loop(b.index(0), b.index(self.form.sum)) as loop:
            value = vector_at(b, b.element_pointer(base, b.mul(loop.index, step), "f32"), lanes, mask)
            b.store(value, b.element_pointer(home, b.mul(loop.index, self.plan.tile_rows), "f32"))

    def _clamped_lines(self, outer: dict[str, Value], row: Value) -> list[Value]:
        """Where a vector of rows lies; rows beyond the last repeat it."""
        b = self.b
        last = b.sub(self._value(self.form.rows), 1)
        rows = [b.minimum(b.add(row, i), last) for i in range(self.plan.lanes)]
        return [self._left({**outer, **self._named(self.nest.row, r)}) for r in rows]

    def _turn(self, lines: Sequence[Value], home: Value, pitch: int, length: int) -> None:
        """The first ``length`` elements of ``lines``, transposed: vectors that lie ``pitch`` elements apart."""
        b, lanes = self.b, self.plan.lanes
        whole = length // lanes * lanes

        def block(k: Value, count: int) -> None:
            pointers = [b.element_pointer(line, k, "f32") for line in lines]
            corner = b.element_pointer(home, b.mul(k, pitch), "f32")
            for i, column in enumerate(transposed_rows(b, pointers, count)):
                b.store(column, b.element_pointer(corner, b.index(i * pitch), "f32"))

        if whole:
            with b.loop(b.index(0), b.index(whole), lanes) as loop:
                block(loop.index, lanes)
        if whole < length:
            block(b.index(whole), length - whole)
