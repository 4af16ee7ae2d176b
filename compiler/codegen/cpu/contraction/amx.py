"""Products by tile registers (`codegen.cpu.amx`): a unit is up to 32 rows and 32 columns, held in four tiles.

Each step of K takes up to 64 bytes of each row (`amx_form.step_of`): two tiles of rows, read where they lie, and two of the
packed panel, whose K is filled with zeros to whole steps. The last step of a K that is none reads its rows from a copy that is filled
with zeros too. All units have one height, so that the registers are configured once: the last one starts early enough to be as tall as
the others, and stores only what is its own.
"""

from __future__ import annotations

from collections.abc import Callable

from effc.compiler.codegen.cpu.access import memory_type
from effc.compiler.codegen.cpu.addresses import scalar_expr
from effc.compiler.codegen.cpu.amx import (
    GROUP_BYTES,
    ROW_BYTES,
    ROWS,
    TILES,
    by_halves,
    clear_tile,
    configured,
    load_tile,
    multiply_bf16,
    multiply_bytes,
    store_tile,
)
from effc.compiler.codegen.cpu.body import Scope
from effc.compiler.codegen.cpu.contraction.ahead import LINE, Ahead
from effc.compiler.codegen.cpu.contraction.amx_form import epilogue_cycles, step_cycles, step_of
from effc.compiler.codegen.cpu.contraction.byte_factors import is_unsigned
from effc.compiler.codegen.cpu.contraction.kernel import Kernel
from effc.compiler.codegen.cpu.contraction.schedule import FAR_BYTES
from effc.compiler.codegen.cpu.text import Builder, Value, element_bytes
from effc.compiler.codegen.cpu.threads import Share
from effc.compiler.ir.expr import Expr, as_expr, floordiv, product

#: Numbers of the registers: sums by half of the rows and of the columns, then the halves of each factor.
_SUMS, _LEFT, _RIGHT = ((0, 1), (2, 3)), (4, 5), (6, 7)


class AmxKernel(Kernel):
    """A unit is one block of rows and one panel."""

    flushes = True

    def unit_cycles(self) -> Expr:
        """A panel that only one unit reads comes from memory."""
        nest, once = self.nest, self.row_tiles().constant == 1
        stream = self.shape.vectors * ROWS * ROW_BYTES // FAR_BYTES
        steps = floordiv(self.sizes[-1] + (step_of(nest) - 1), as_expr(step_of(nest)))
        sums = product(self.sizes[:-1]) * steps * max(step_cycles(nest), stream if once else 0)
        return sums + epilogue_cycles(nest)

    def row_of(self, share: Share, tile: Value) -> Value:
        return self.b.mul(tile, self._height(share))

    def _height(self, share: Share) -> Value:
        """Of all units."""
        b, mr = self.b, self.shape.mr
        rows = scalar_expr(b, self.nest.size(self.nest.row), share.symbols)
        tiles = b.maximum(b.div(b.add(rows, mr - 1), mr), 1)
        return b.div(b.add(rows, b.sub(tiles, 1)), tiles)

    def body(self, share: Share) -> None:
        b, nest = self.b, self.nest
        self.share = share
        self.element, self.k_step = memory_type(nest.spec.operands[nest.left.operand].dtype), step_of(nest)
        self.height = self._height(share)
        upper = b.maximum(b.minimum(self.height, ROWS), 1)
        lower = b.maximum(b.sub(self.height, ROWS), 1)
        step_bytes = self.k_step * element_bytes(self.element)
        sizes = [(b.index(step_bytes // GROUP_BYTES), ROW_BYTES)] * TILES
        for half, rows in enumerate((upper, lower)):
            sizes[_LEFT[half]] = (rows, step_bytes)
            for tile in _SUMS[half]:
                sizes[tile] = (rows, ROW_BYTES)
        self.sums = b.stack(2 * ROWS * self.shape.nr, self.accumulator)
        self.filled = b.stack(2 * ROWS * self.k_step, self.element)
        row = self._value(nest.stride(nest.left.load, nest.row))
        self.row_bytes = b.mul(row, element_bytes(self.element))
        with configured(b, sizes):
            super().body(share)

    def _unit(self, at: dict[str, Value]) -> None:
        b, nest = self.b, self.nest
        outer, panel, column = self._corner(at)
        first = b.mul(at.get("tile", b.index(0)), self.height)
        start = b.minimum(first, b.sub(self._value(nest.size(nest.row)), self.height))
        place = {**outer, f"d{nest.column}": column}
        if nest.row is not None:
            place[f"d{nest.row}"] = start
        left, right = self._pointer(nest.left.load, place), self._right(outer, panel, place)
        ahead = self._ahead(panel, right)
        by_halves(b, self.height, lambda halves: self._sums(left, right, halves, ahead))
        self._finish(outer, column, start, b.sub(first, start))

    # -- sums -------------------------------------------------------------------------------------------------------
    def _sums(self, left: Value, right: Value, halves: int, ahead: Ahead | None) -> None:
        """All of K, into the first ``halves`` x vectors tiles, and these to the stack."""
        self._clear(halves)
        self._reduce(0, left, right, halves, ahead)
        self._move(store_tile, halves)

    def _clear(self, halves: int) -> None:
        for i in range(halves):
            for j in range(self.shape.vectors):
                clear_tile(self.b, _SUMS[i][j])

    def _move(self, move: Callable[[Builder, int, Value, Value], None], halves: int) -> None:
        """Load or store the sums at ``self.sums``."""
        b, width = self.b, self.shape.nr * element_bytes(self.accumulator)
        for i in range(halves):
            for j in range(self.shape.vectors):
                offset = i * ROWS * width + j * ROW_BYTES
                move(b, _SUMS[i][j], b.element_pointer(self.sums, b.index(offset), "i8"), b.index(width))

    def _reduce(self, depth: int, left: Value, right: Value, halves: int, ahead: Ahead | None) -> None:
        b, nest = self.b, self.nest
        size = self._value(self.sizes[depth])
        if depth < len(self.sizes) - 1:
            across = self._value(nest.stride(nest.left.load, nest.reduction[depth]))
            along = self._value(self._right_strides()[depth])
            inner = self._value(product(self.sizes[depth + 1 :]))
            with b.loop(b.index(0), size) as loop:
                self._reduce(
                    depth + 1,
                    b.element_pointer(left, b.mul(loop.index, across), self.element),
                    b.element_pointer(right, b.mul(loop.index, along), self.element),
                    halves,
                    ahead and ahead.moved(b, b.mul(loop.index, inner)),
                )
            return
        self._steps(left, right, size, halves, ahead)

    def _steps(self, left: Value, right: Value, size: Value, halves: int, ahead: Ahead | None) -> None:
        """``size`` elements of the innermost sum."""
        b = self.b
        whole = b.mul(b.div(size, self.k_step), self.k_step)
        with b.loop(b.index(0), whole, self.k_step) as loop:
            if ahead is not None:
                ahead.moved(b, loop.index).fetch(b, self.k_step)
            at = self._at(right, loop.index)
            self._fetch_next(at)
            self._step(b.element_pointer(left, loop.index, self.element), self.row_bytes, at, halves)
        rest = b.sub(size, whole)
        if b.integer_of(rest) == 0:
            return
        with b.when(b.compare("arith.cmpi", "sgt", rest, b.index(0))):
            self._fill(b.element_pointer(left, whole, self.element), rest)
            self._step(self.filled, b.index(ROW_BYTES), self._at(right, whole), halves)

    def _at(self, right: Value, k: Value) -> Value:
        """The panel from element ``k`` of the innermost sum on."""
        return self.b.element_pointer(right, self.b.mul(k, self.shape.nr), self.element)

    def _fetch_next(self, right: Value) -> None:
        """The next step of the panel into L1: a load of a tile waits for each of its rows."""
        step = self.k_step * self.shape.nr * element_bytes(self.element)
        for line in range(0, step, LINE):
            self.b.prefetch(self.b.element_pointer(right, self.b.index(step + line), "i8"), level=1)

    def _step(self, left: Value, stride: Value, right: Value, halves: int) -> None:
        """One row of tiles' length along K."""
        b, vectors = self.b, self.shape.vectors
        width = b.index(self.shape.nr * GROUP_BYTES)
        for j in range(vectors):
            load_tile(b, _RIGHT[j], b.element_pointer(right, b.index(j * ROW_BYTES), "i8"), width)
        for i in range(halves):
            at = b.element_pointer(left, b.mul(stride, i * ROWS), "i8")
            load_tile(b, _LEFT[i], at, stride)
            for j in range(vectors):
                self._multiply(_SUMS[i][j], _LEFT[i], _RIGHT[j])

    def _multiply(self, total: int, left: int, right: int) -> None:
        if self.accumulator == "f32":
            multiply_bf16(self.b, total, left, right)
        else:
            unsigned = (is_unsigned(self.nest, self.nest.left), is_unsigned(self.nest, self.nest.right))
            multiply_bytes(self.b, total, left, right, unsigned)

    def _fill(self, left: Value, count: Value) -> None:
        """Copy ``count`` elements of each row, and zeros behind them."""
        b = self.b
        mask = b.first_lanes(self.k_step, count)
        zero = b.constant(0, self.element, self.k_step)
        with b.loop(b.index(0), self.height) as loop:
            source = b.element_pointer(left, b.mul(loop.index, self.row_bytes), "i8")
            b.store(
                b.masked_load(source, mask, zero),
                b.element_pointer(self.filled, b.mul(loop.index, self.k_step), self.element),
            )

    # -- what follows -----------------------------------------------------------------------------------------------
    def _finish(self, outer: dict[str, Value], column: Value, start: Value, skipped: Value) -> None:
        """The epilogue of all rows but the ``skipped`` first, which another unit writes."""
        b, shape = self.b, self.shape
        columns = [b.add(column, j * shape.lanes) for j in range(shape.vectors)]
        masks, root = self._masks(column), Scope(dims=outer)
        shared = self.epilogue.shared(root, columns, masks, shape.lanes)
        with b.loop(skipped, self.height) as loop:
            row = b.element_pointer(self.sums, b.mul(loop.index, shape.nr), self.accumulator)
            sums = [
                b.load(b.element_pointer(row, b.index(j * shape.lanes), self.accumulator), self.step.type)
                for j in range(shape.vectors)
            ]
            self.epilogue.row(root, b.add(start, loop.index), columns, masks, shared, sums)
