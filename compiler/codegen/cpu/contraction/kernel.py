"""The kernel around the register tile: units of work, their order, remainders of rows and columns.

A unit is one register tile. Units are numbered with the batch outermost, then the column panels, then the rows, so that a thread
walks the rows under one panel of the right factor, which stays in its L2 cache; each thread takes an equal, contiguous share.
"""

from __future__ import annotations

from collections.abc import Sequence

from effc.compiler.codegen.cpu.addresses import scalar_expr
from effc.compiler.codegen.cpu.body import Body
from effc.compiler.codegen.cpu.contraction.epilogue import Epilogue
from effc.compiler.codegen.cpu.contraction.factors import Step
from effc.compiler.codegen.cpu.contraction.roles import Nest, Side
from effc.compiler.codegen.cpu.contraction.shape import Shape
from effc.compiler.codegen.cpu.contraction.tile import Tile
from effc.compiler.codegen.cpu.ops import OpEmitter
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.codegen.cpu.text import Builder, Value
from effc.compiler.codegen.cpu.threads import Share, parallel_kernel
from effc.compiler.ir.expr import Expr, as_expr, const, floordiv, product


class Kernel:
    """Emits one contraction; ``shape`` holds its schedule. Other forms (`form`) replace what a unit is and does."""

    #: Whether the tile reads a copy of the right factor made by the kernel.
    turned = False

    def __init__(self, nest: Nest, shape: Shape, target: Target) -> None:
        self.nest, self.shape, self.target = nest, shape, target
        self.b = Builder()
        self.sizes = [nest.spec.dims[k].size for k in nest.reduction]
        self.accumulator = nest.spec.body[nest.contract].dtype

    def text(self) -> str:
        nest, shape = self.nest, self.shape
        units = product([*(nest.spec.dims[i].size for i in nest.outer), self._panels(), self._row_tiles()])
        cycles = product(self.sizes) * (shape.cycles_per_step * self._rows_of_unit() // shape.mr) + 64
        # The kernel is named for the spec that was asked for; the merged one has the same operands and symbols.
        with parallel_kernel(self.b, shape.spec, units, cycles) as share:
            self._body(share)
        return self.b.text()

    # -- units ------------------------------------------------------------------------------------------------------
    def _panels(self) -> Expr:
        return _ceildiv(self.nest.size(self.nest.column), self.shape.nr)

    def _row_tiles(self) -> Expr:
        return _ceildiv(self.nest.size(self.nest.row), self._rows_of_unit())

    def _rows_of_unit(self) -> int:
        return self.shape.mr

    def _prepare(self, share: Share) -> None:
        """Reserve what all units of a share use."""

    def _body(self, share: Share) -> None:
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
        self.epilogue = Epilogue(b, nest, body)
        axes = self._axes()
        sizes = [self._value(size) for _, size in axes]
        with b.loop(share.lo, share.hi) as loop:
            rest, at = loop.index, {}
            for (name, _), size in reversed(list(zip(axes, sizes, strict=True))):
                at[name] = b.rem(rest, size) if name != axes[0][0] else rest
                rest = b.div(rest, size)
            self._unit(at)

    def _axes(self) -> list[tuple[str, Expr]]:
        nest = self.nest
        batch = [(f"d{i}", nest.spec.dims[i].size) for i in nest.outer if i in nest.batch]
        rest = [(f"d{i}", nest.spec.dims[i].size) for i in nest.outer if i not in nest.batch]
        panel, rows = ("panel", self._panels()), ("tile", self._row_tiles())
        axes = [*batch, *rest, rows, panel] if nest.wise else [*batch, panel, *rest, rows]
        return [a for a in axes if a[1].constant != 1] or [panel]

    # -- one unit ---------------------------------------------------------------------------------------------------
    def _unit(self, at: dict[str, Value]) -> None:
        b, nest, shape = self.b, self.nest, self.shape
        zero = b.index(0)
        outer = {f"d{i}": at.get(f"d{i}", zero) for i in nest.outer}
        panel = at.get("panel", zero)
        first_column = b.mul(panel, shape.nr)
        first_row = b.mul(at.get("tile", zero), shape.mr)
        rows = nest.size(nest.row)
        if rows.constant is not None and rows.constant % shape.mr == 0:
            self._tile(outer, panel, first_row, first_column, shape.mr, None)
            return
        count = self._value(rows)
        left = b.sub(count, first_row)
        full = b.compare("arith.cmpi", "sge", left, b.index(shape.mr))

        def whole() -> Sequence[Value]:
            self._tile(outer, panel, first_row, first_column, shape.mr, None)
            return []

        def part() -> Sequence[Value]:
            fewer = None if rows.constant is None else rows.constant % shape.mr
            self._tile(outer, panel, first_row, first_column, fewer or shape.mr, None if fewer else left)
            return []

        b.choose(full, (), whole, part)

    def _tile(
        self, outer: dict[str, Value], panel: Value, row: Value, column: Value, rows: int, left_rows: Value | None
    ) -> None:
        """One register tile. ``left_rows``: only so many rows exist; the others repeat the last one, and write the same values."""
        b, nest, shape, step = self.b, self.nest, self.shape, self.step
        masks = self._masks(column)
        indices: list[Value] = []
        for i in range(rows):
            offset = b.index(i) if left_rows is None else b.minimum(b.index(i), b.sub(left_rows, 1))
            indices.append(b.add(row, offset))
        start = dict(outer)
        if nest.row is not None:
            start[f"d{nest.row}"] = row
        if nest.column is not None:
            start[f"d{nest.column}"] = column
        row_stride = nest.stride(nest.left.load, nest.row)
        fixed = row_stride.constant if left_rows is None else None
        base = self._pointer(nest.left.load, start)
        left = [base]
        if fixed is None:
            element = step.memory(nest.left)
            stride = self._value(row_stride)
            left = [b.element_pointer(base, b.mul(b.sub(i, row), stride), element) for i in indices]
        masked_reads = masks if not nest.right.packed else None
        tile = Tile(
            step,
            rows,
            shape.vectors,
            fixed,
            self.sizes,
            [nest.stride(nest.left.load, k) for k in nest.reduction],
            self._right_strides(),
            self.share.symbols,
            shape.unroll,
            masked_reads if not nest.wise else masks,
            self._lane_offsets(),
            b.mul(self._column_stride(), shape.lanes),
        )
        sums = tile.run(left, self._right(outer, panel, start))
        columns = [b.add(column, j * shape.lanes) for j in range(shape.vectors)]
        self.epilogue.write(outer, indices, columns, masks, sums)

    # -- the right factor -------------------------------------------------------------------------------------------
    def _right(self, outer: dict[str, Value], panel: Value, start: dict[str, Value]) -> Value:
        b, nest, shape = self.b, self.nest, self.shape
        if not nest.right.packed:
            return self._pointer(nest.right.load, start)
        index = b.index(0)
        for i in nest.batch:
            index = b.add(b.mul(index, self._value(nest.spec.dims[i].size)), outer[f"d{i}"])
        index = b.add(b.mul(index, self._value(self._panels())), panel)
        offset = b.mul(index, self._value(shape.panel_elements(self.sizes)))
        return b.element_pointer(self.share.pointer(nest.right.operand), offset, self.step.memory(nest.right))

    def _right_strides(self) -> list[Expr]:
        nest, shape = self.nest, self.shape
        if not nest.right.packed:
            return [nest.stride(nest.right.load, k) for k in nest.reduction]
        strides = [const(shape.nr * shape.group)]
        for depth in range(len(self.sizes) - 1, 0, -1):
            size = self.sizes[depth]
            steps = _ceildiv(size, shape.group) if depth == len(self.sizes) - 1 else size
            strides.insert(0, strides[0] * steps)
        return strides[: len(self.sizes)]

    def _column_stride(self) -> Value:
        """Elements between neighbouring columns (packed: of groups)."""
        if self.nest.right.packed:
            return self.b.index(self.shape.group)
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
