"""The kernel around the register tile: units of work, their order, remainders of rows and columns.

A unit is one register tile. Units are numbered with the batch outermost, then the column panels, then the rows, so that a thread
walks the rows under one panel of the right factor, which stays in its L2 cache; or, where the schedule says so (`order`), the rows
before the panels. Each thread takes an equal, contiguous share.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

from effc.compiler.codegen.cpu.addresses import scalar_expr
from effc.compiler.codegen.cpu.body import Body
from effc.compiler.codegen.cpu.contraction.ahead import USUAL_TURNS, Ahead
from effc.compiler.codegen.cpu.contraction.borders import Outside, by_edge
from effc.compiler.codegen.cpu.contraction.epilogue import Epilogue
from effc.compiler.codegen.cpu.contraction.factors import Step
from effc.compiler.codegen.cpu.contraction.grouped import GroupedTile
from effc.compiler.codegen.cpu.contraction.order import batches_inside
from effc.compiler.codegen.cpu.contraction.roles import Nest
from effc.compiler.codegen.cpu.contraction.rows import by_height, heights, place
from effc.compiler.codegen.cpu.contraction.shape import Shape
from effc.compiler.codegen.cpu.contraction.sides import Side
from effc.compiler.codegen.cpu.contraction.stacked import StackedTile, instructions
from effc.compiler.codegen.cpu.contraction.tile import Tile
from effc.compiler.codegen.cpu.contraction.touch import touch
from effc.compiler.codegen.cpu.ops import OpEmitter
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.codegen.cpu.text import Builder, Value, element_bytes
from effc.compiler.codegen.cpu.threads import Share, parallel_kernel
from effc.compiler.ir.expr import Expr, as_expr, const, floordiv, product

AnyTile = TypeVar("AnyTile", bound=Tile)


class Kernel:
    """Emits one contraction; ``shape`` holds its schedule. Other forms (`form`) replace what a unit is and does."""

    #: Whether the tile reads a copy of the right factor made by the kernel.
    turned = False

    def __init__(self, nest: Nest, shape: Shape, target: Target, builder: Builder | None = None) -> None:
        """``builder``: of the module that the code is a part of, where it is not one of its own."""
        self.nest, self.shape, self.target = nest, shape, target
        self.b = builder or Builder()
        self.sizes = [nest.spec.dims[k].size for k in nest.reduction]
        self.accumulator = nest.spec.body[nest.contract].dtype

    @property
    def flushes(self) -> bool:
        """Whether the sums take subnormal numbers for zeros, so that what follows them may too: those of pairs of bf16 do."""
        return self.shape.dot and self.shape.group == 2

    def text(self) -> str:
        nest, shape = self.nest, self.shape
        units = product([*(nest.spec.dims[i].size for i in nest.outer), self.panels(), self.row_tiles()])
        cycles = self.unit_cycles() + 64
        # The kernel is named for the spec that was asked for; the merged one has the same operands and symbols.
        with parallel_kernel(self.b, shape.spec, units, cycles) as share:
            self.body(share)
        return self.b.text()

    # -- units ------------------------------------------------------------------------------------------------------
    def panels(self) -> Expr:
        return _ceildiv(self.nest.size(self.nest.column), self.shape.nr)

    def row_tiles(self) -> Expr:
        return _ceildiv(self.nest.size(self.nest.row), self._rows_of_unit())

    def row_of(self, share: Share, tile: Value) -> Value:
        """The first row of a tile."""
        rows, tiles = (scalar_expr(self.b, e, share.symbols) for e in (self.nest.size(self.nest.row), self.row_tiles()))
        return place(self.b, rows, tiles, tile)[0]

    def _rows_of_unit(self) -> int:
        return self.shape.mr

    def unit_cycles(self) -> Expr:
        """An estimate of all steps of K of a unit."""
        if self.nest.stacked:
            return const(self.shape.vectors * instructions(self.nest, self.shape.mr))
        return self.shape.steps(product(self.sizes)) * (
            self.shape.cycles_per_step * self._rows_of_unit() // self.shape.mr
        )

    def _prepare(self, share: Share) -> None:
        """Reserve what all units of a share use."""

    def body(self, share: Share) -> None:
        """The code of a share of the units, in a function of its own."""
        b, nest = self.b, self.nest
        self.share = share
        ops = OpEmitter(b, self.target)
        self.step = Step(
            b,
            nest,
            self.shape.lanes,
            self.accumulator,
            self.shape.group,
            self.shape.dot,
            ops,
            self.turned and self.shape.group == 1,
        )
        self._prepare(share)
        body = Body(b, nest.spec, self.target, share.pointer, share.symbols, lambda: share.error_cell)
        body.ops.flushes = self.flushes
        self.epilogue = Epilogue(b, nest, body)
        axes = self._axes()
        self.last_panel = self._indices(axes, b.sub(share.hi, 1)).get("panel", b.index(0))
        with b.loop(share.lo, share.hi) as loop:
            self.unit = loop.index
            self._unit(self._indices(axes, loop.index))

    def _indices(self, axes: list[tuple[str, Expr]], unit: Value) -> dict[str, Value]:
        """The index along each of ``axes`` of a unit."""
        b, at = self.b, {}
        for name, axis in reversed(axes):
            size = b.maximum(self._value(axis), 1)  # an empty one has no units, but is divided by
            at[name] = b.rem(unit, size) if name != axes[0][0] else unit
            unit = b.div(unit, size)
        return at

    def _axes(self) -> list[tuple[str, Expr]]:
        nest = self.nest
        batch = [(f"d{i}", nest.spec.dims[i].size) for i in nest.outer if i in nest.batch]
        rest = [(f"d{i}", nest.spec.dims[i].size) for i in nest.outer if i not in nest.batch]
        panel, rows = ("panel", self.panels()), ("tile", self.row_tiles())
        if self.shape.rows_outside:
            outer = [*rest, *batch] if nest.lines or batches_inside(nest, self.shape.nr) else [*batch, *rest]
            lines = [f"d{i}" for i in range(nest.lines)]
            outer.sort(key=lambda axis: lines.index(axis[0]) if axis[0] in lines else nest.lines)
            axes = [*outer, rows, panel]
        else:
            axes = [*batch, panel, *rest, rows]
        return [a for a in axes if a[1].constant != 1] or [panel]

    # -- one unit ---------------------------------------------------------------------------------------------------
    def _unit(self, at: dict[str, Value]) -> None:
        b, nest, shape = self.b, self.nest, self.shape
        outer, panel, column = self._corner(at)
        rows = nest.size(nest.row)
        turn = at.get("tile", b.index(0))
        first, height = place(b, self._value(rows), self._value(self.row_tiles()), turn)

        def tile(n: int, outside: Outside = frozenset()) -> None:
            self._tile(outer, panel, first, column, n, outside)

        along = next((x for x in nest.borders if x.place is not None and x.place == nest.row), None)
        if along is None:
            by_height(b, height, heights(rows, shape.mr), tile)
            return
        assert rows.constant is not None, "roles.find admits no border along rows of unknown number"
        edges, others = along.edges(rows.constant, shape.mr, nest.size(along.tap).constant or 0)
        by_edge(b, turn, edges, tile, (lambda: by_height(b, height, others, tile)) if others else None)

    def _corner(self, at: dict[str, Value]) -> tuple[dict[str, Value], Value, Value]:
        """Of a unit: the outer dimensions' indices, the panel, and its first column."""
        zero = self.b.index(0)
        panel = at.get("panel", zero)
        return {f"d{i}": at.get(f"d{i}", zero) for i in self.nest.outer}, panel, self.b.mul(panel, self.shape.nr)

    def _tile_of(self, kind: type[AnyTile], rows: int, **further: Any) -> AnyTile:
        """A tile of so many rows and all columns of a panel, over all of K."""
        nest, shape = self.nest, self.shape
        return kind(
            step=self.step,
            rows=rows,
            vectors=shape.vectors,
            row_stride=nest.stride(nest.left.load, nest.row).constant,
            sizes=self.sizes,
            left_strides=[nest.stride(nest.left.load, k) for k in nest.reduction],
            right_strides=self._right_strides(),
            symbols=self.share.symbols,
            vector_step=self.b.mul(self._column_stride(), shape.lanes),
            **further,
        )

    def _tile(
        self, outer: dict[str, Value], panel: Value, row: Value, column: Value, rows: int, outside: Outside
    ) -> None:
        """One register tile of so many rows, of whose products those ``outside`` are left out."""
        b, nest, shape = self.b, self.nest, self.shape
        masks = self._masks(column)
        indices = [b.add(row, i) for i in range(rows)]
        start = dict(outer)
        if nest.row is not None:
            start[f"d{nest.row}"] = row
        if nest.column is not None:
            start[f"d{nest.column}"] = column
        right = self._right(outer, panel, start)
        whole = self._tile_of(
            GroupedTile if nest.channels else StackedTile if nest.stacked else Tile,
            rows,
            unroll=shape.unroll,
            masks=masks if nest.wise or not nest.right.packed else None,
            offsets=self._lane_offsets(),
            ahead=self._ahead(panel, right),
            outside=outside,
        )
        if shape.touch:
            touch(b, nest, self.share, start, rows, shape.nr)
        left, clamped = self._left(start, rows), self._clamped(start)
        sums = whole.run(left, right) if not clamped else self._run_clamped(whole, clamped, left, right)
        columns = [b.add(column, j * shape.lanes) for j in range(shape.vectors)]
        self.epilogue.write(outer, indices, columns, masks, sums)

    def _run_clamped(
        self, whole: Tile, clamped: dict[int, tuple[Value, Value]], left: list[Value], right: Value
    ) -> list[list[Value]]:
        """Places where all taps are inside have code whose loops are of known length."""
        b, inside = self.b, self.b.constant(True, "i1")
        for depth, (low, high) in clamped.items():
            taps = b.compare("arith.cmpi", "eq", b.sub(high, low), self._value(self.sizes[depth]))
            inside = b.op("arith.andi", inside, taps)

        def run(tile: Tile) -> list[Value]:
            return [v for row in tile.run(left, right) for v in row]

        types = [self.step.type] * (whole.rows * whole.vectors)
        flat = b.choose(inside, types, lambda: run(whole), lambda: run(replace(whole, clamped=clamped)))
        return [flat[i : i + whole.vectors] for i in range(0, len(flat), whole.vectors)]

    def _clamped(self, start: dict[str, Value]) -> dict[int, tuple[Value, Value]]:
        """First tap and end of the taps inside, by depth of K, where a border does not run along the rows."""
        nest, found = self.nest, dict[int, tuple[Value, Value]]()
        for border in nest.borders:
            if border.place is None or border.place != nest.row:
                place = self.b.index(0) if border.place is None else start[f"d{border.place}"]
                taps = nest.size(border.tap).constant or 0
                found[nest.reduction.index(border.tap)] = border.clamp(self.b, place, taps)
        return found

    def _left(self, start: dict[str, Value], rows: int) -> list[Value]:
        """What a tile takes for its rows from ``start`` on."""
        b, nest = self.b, self.nest
        stride, base = nest.stride(nest.left.load, nest.row), self._pointer(nest.left.load, start)
        if stride.constant is not None:
            return [base]
        element = self.step.memory(nest.left)
        return [b.element_pointer(base, b.mul(self._value(stride), i), element) for i in range(rows)]

    # -- the right factor -------------------------------------------------------------------------------------------
    def _right(self, outer: dict[str, Value], panel: Value, start: dict[str, Value]) -> Value:
        b, nest, shape = self.b, self.nest, self.shape
        if not nest.right.packed:
            return self._pointer(nest.right.load, start)
        offset = b.mul(self._number_of(outer, panel), self._value(shape.panel_elements(self.sizes)))
        return b.element_pointer(self.share.pointer(nest.right.operand), offset, self.step.memory(nest.right))

    def _number_of(self, outer: dict[str, Value], panel: Value) -> Value:
        """The place of a panel among those of all batches."""
        b, index = self.b, self.b.index(0)
        for i in self.nest.batch:
            index = b.add(b.mul(index, self._value(self.nest.spec.dims[i].size)), outer[f"d{i}"])
        return b.add(b.mul(index, self._value(self.panels())), panel)

    def _ahead(self, panel: Value, right: Value) -> Ahead | None:
        """Where the right factor is packed, and several tiles in turn share a panel: all of them share in fetching the next one."""
        nest, b = self.nest, self.b
        turns = product([self.row_tiles(), *(nest.spec.dims[i].size for i in nest.outer if i not in nest.batch)])
        if not nest.right.packed or self.shape.rows_outside or turns.constant == 1:
            return None
        elements = self._value(self.shape.panel_elements(self.sizes))
        more = b.compare("arith.cmpi", "slt", panel, self.last_panel)
        distance = b.select(more, elements, b.index(0))  # no other thread's panel
        start = b.element_pointer(right, distance, self.step.right_memory)
        width = self.shape.nr * element_bytes(self.step.right_memory)
        turn, points = b.rem(self.unit, self._value(turns)), self._value(product(self.sizes))
        return Ahead.share(b, start, turn, turns.constant or USUAL_TURNS, points, width)

    def _right_strides(self) -> list[Expr]:
        nest, shape = self.nest, self.shape
        if not nest.right.packed:
            return [nest.stride(nest.right.load, k) for k in nest.reduction]
        strides = [const(shape.nr * shape.together)]
        for depth in range(len(self.sizes) - 1, 0, -1):
            size = self.sizes[depth]
            if depth == len(self.sizes) - 1:
                strides.insert(0, shape.filled_size(size) * shape.nr)
            else:
                strides.insert(0, strides[0] * size)
        return strides[: len(self.sizes)]

    def _column_stride(self) -> Value:
        """Elements between neighbouring columns (packed: of groups)."""
        if self.nest.right.packed:
            return self.b.index(self.shape.together)
        return self._value(self.nest.stride(self.nest.right.load, self.nest.column))

    def _lane_offsets(self) -> Value | None:
        """Offsets of the lanes where the columns of an unpacked right factor are not contiguous."""
        nest, b = self.nest, self.b
        if nest.right.packed or nest.column is None or nest.stride(nest.right.load, nest.column).constant == 1:
            return None
        return b.op("arith.muli", b.iota(self.shape.lanes), b.broadcast(self._column_stride(), self.shape.lanes))

    # -- values -----------------------------------------------------------------------------------------------------
    def _masks(self, column: Value) -> list[Value] | None:
        """Which lanes of each vector are columns; None where all of them are, in every panel."""
        b, nest, shape = self.b, self.nest, self.shape
        size = nest.size(nest.column)
        if size.constant is not None and size.constant % shape.nr == 0:
            return None
        lanes = b.iota(shape.lanes)
        left = b.sub(self._value(size), column)
        result = []
        for j in range(shape.vectors):
            bound = b.broadcast(b.sub(left, j * shape.lanes), shape.lanes)
            result.append(b.compare("arith.cmpi", "slt", lanes, bound))
        return result

    def _pointer(self, load: int, at: dict[str, Value]) -> Value:
        """Address of a factor at ``at``, at the start of its sums."""
        nest = self.nest
        side = nest.left if load == nest.left.load else nest.right
        address = nest.address(load).substitute({f"d{k}": const(0) for k in nest.reduction})
        return self._address(address, side, at)

    def _address(self, address: Expr, side: Side, at: dict[str, Value]) -> Value:
        offset = scalar_expr(self.b, address, {**self.share.symbols, **at})
        return self.b.element_pointer(self.share.pointer(side.operand), offset, self.step.memory(side))

    def _value(self, expr: Expr) -> Value:
        return scalar_expr(self.b, expr, self.share.symbols)


def _ceildiv(size: Expr, by: int) -> Expr:
    return floordiv(size + (by - 1), as_expr(by))
