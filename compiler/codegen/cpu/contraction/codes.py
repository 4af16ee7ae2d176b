"""Products with a packed factor of integers or low-bit codes, summed as floats: linears whose weights alone are quantized.

Few rows (decoding a text) are bound by the bytes of the codes: their tile makes floats of a step's codes in registers, and scales the
sum of each group, not its terms; or, where it can, the codes stay what they are, and the rows become integers (`fixed_point`), or are
bytes (`byte_rows`).
Many rows (a prompt) are bound by the multiply-adds: a block of a panel becomes floats, scaled ones, in a buffer on the stack, once for
all row tiles of the unit, as the ``turned`` kernel copies its factor. A kernel whose number of rows is known only at run time holds both.
"""

from __future__ import annotations

from dataclasses import replace

from effc.compiler.codegen.cpu.access import memory_type
from effc.compiler.codegen.cpu.contraction.ahead import Ahead
from effc.compiler.codegen.cpu.contraction.byte_rows import ByteRows, BytesTile
from effc.compiler.codegen.cpu.contraction.chains import chain_length
from effc.compiler.codegen.cpu.contraction.code_rows import (
    DECODING,
    few_rows,
    held_as,
    in_pairs,
    rows_as_bytes,
    takes_pairs,
)
from effc.compiler.codegen.cpu.contraction.codes_tile import Codes, CodesTile
from effc.compiler.codegen.cpu.contraction.digits_tile import DigitsTile
from effc.compiler.codegen.cpu.contraction.fixed_point import Chunks, FixedRows
from effc.compiler.codegen.cpu.contraction.rows import by_height
from effc.compiler.codegen.cpu.contraction.sides import Grain
from effc.compiler.codegen.cpu.contraction.turned import BLOCK_BYTES, TurnedKernel
from effc.compiler.codegen.cpu.low_bit import Decoder
from effc.compiler.codegen.cpu.text import Value
from effc.compiler.codegen.cpu.threads import Share
from effc.compiler.ir.expr import Expr, const, minimum, product
from effc.compiler.ir.spec import ITEM_SIZE


class CodesKernel(TurnedKernel):
    """See the module's docstring."""

    turned = False

    def _prepare(self, share: Share) -> None:
        format_ = self.nest.right.format
        self.decoder = None if format_ is None else Decoder(self.b, self.target, format_)
        self.few, self.pairs = few_rows(self.nest.size(self.nest.row)), in_pairs(self.nest, self.target)
        rows = self.nest.size(self.nest.row).constant
        if rows is None or rows > self.few:
            self._prepare_many()
        self.held = self._rows_as_bytes()

    def _prepare_many(self) -> None:
        b, shape = self.b, self.shape
        group = 2 if self.pairs else 1
        self.buffered = replace(self.step, group=group, dot=self.pairs, turned=True)
        most = group * (BLOCK_BYTES // (shape.nr * ITEM_SIZE[self.accumulator]))
        together = max(shape.group, group)
        chain = chain_length(packed=True) if self.buffered.rounds else most
        self.steps = max(min(most, chain) // together, 1) * together
        # The last word of a group is decoded whole.
        elements = (self.steps + together) * shape.nr // group
        self.block, self.block_bytes = b.stack(elements, self.accumulator), elements * ITEM_SIZE[self.accumulator]
        self.sums = b.stack(self._rows_of_unit() * shape.nr, self.accumulator)

    def _rows_as_bytes(self) -> FixedRows | ByteRows | None:
        """The rows as bytes, written here: few ones, as many as their tile has registers for."""
        b, nest = self.b, self.nest
        rows, kept = nest.size(nest.row), held_as(nest, self.target)
        most = rows_as_bytes(nest, self.target, self.shape.vectors)
        if kept is None or not most or (rows.constant is None and kept.bytes(most) > self.block_bytes):
            return None
        memory = self.block if rows.constant is None else b.stack(kept.bytes(most), "i8")
        held: FixedRows | ByteRows
        if isinstance(kept, Chunks):
            held = FixedRows(self.step, self.target, kept, memory, most)
        else:
            held = ByteRows(self.step, self.target, kept, memory, most)
        start = {f"d{i}": b.index(0) for i in (nest.row, nest.column) if i is not None}
        first, row_stride = self._pointer(nest.left.load, start), self._value(nest.stride(nest.left.load, nest.row))
        group_stride = self._value(nest.stride(nest.left.load, nest.groups))

        def write(count: Value) -> None:
            held.write(first, row_stride, count, group_stride)

        if rows.constant is not None:
            write(b.index(rows.constant))
        else:
            with b.when(b.compare("arith.cmpi", "sle", self._value(rows), b.index(most))):
                write(self._value(rows))
        return held

    def unit_cycles(self) -> Expr:
        rows = minimum(self.nest.size(self.nest.row), const(super()._rows_of_unit()))
        return product(self.sizes) * (rows + DECODING) * self.shape.vectors

    def _rows_of_unit(self) -> int:
        """Units of even height, where their number is known: each makes floats of all codes of its panel."""
        most, rows, mr = super()._rows_of_unit(), self.nest.size(self.nest.row).constant, self.shape.mr
        if not rows:
            return most
        return -(-rows // (-(-rows // most) * mr)) * mr

    # -- few rows ---------------------------------------------------------------------------------------------------
    def _unit(self, at: dict[str, Value]) -> None:
        b, nest = self.b, self.nest
        size = nest.size(nest.row)
        self.panel = at.get("panel", b.index(0))
        if size.constant is not None:
            if size.constant <= self.few:
                self._all_rows(at, size.constant)
            else:
                super()._unit(at)
            return
        rows = self._value(size)

        def few() -> list[Value]:
            by_height(b, rows, range(1, self.few + 1), lambda n: self._all_rows(at, n))
            return []

        def many() -> list[Value]:
            super(CodesKernel, self)._unit(at)
            return []

        b.choose(b.compare("arith.cmpi", "sle", rows, b.index(self.few)), (), few, many)

    def _all_rows(self, at: dict[str, Value], rows: int) -> None:
        """One panel of all rows."""
        b, nest, shape = self.b, self.nest, self.shape
        outer, panel, column = self._corner(at)
        start = {**outer, f"d{nest.column}": column}
        if nest.row is not None:
            start[f"d{nest.row}"] = b.index(0)
        right = self._right(outer, panel, start)
        tile = self._tile_of(
            CodesTile,
            rows,
            unroll=max(shape.unroll // shape.group, 1),
            masks=None,
            offsets=None,
            ahead=Ahead.stream(b, right, shape.nr * self._bits() // 8),
            codes=self._codes(outer),
            pairs=self.pairs and takes_pairs(nest),
        )
        left = self._left(start, rows)
        if self.held is not None and rows <= self.held.most:
            sums = self._of_bytes(self.held, tile, left, right)
        else:
            groups = self._value(self.sizes[0]) if self.nest.groups is not None else None
            sums = tile.grouped(groups, left, right)
        columns = [b.add(column, j * shape.lanes) for j in range(shape.vectors)]
        split = [sums[i * shape.vectors : (i + 1) * shape.vectors] for i in range(rows)]
        self.epilogue.write(outer, [b.index(i) for i in range(rows)], columns, self._masks(column), split)

    def _of_bytes(self, held: FixedRows | ByteRows, tile: CodesTile, left: list[Value], right: Value) -> list[Value]:
        """The sums of rows that are held as bytes."""
        codes, nr = tile.codes, self.shape.nr
        assert codes is not None, "given above"
        if isinstance(held, ByteRows):
            return BytesTile(self.b, held, codes, tile.rows, tile.vectors, right, nr).sums()

        def floats(group: Value, code: Value, length: int) -> list[Value]:
            return tile.chunk(group if self.nest.groups is not None else None, code, length, left, right)

        return DigitsTile(self.b, held, codes, tile.rows, tile.vectors, right, nr, floats).sums()

    def _bits(self) -> int:
        """Of a code in memory."""
        format_ = self.nest.right.format
        return 8 if format_ is None else format_.stored_bits

    def _codes(self, outer: dict[str, Value]) -> Codes:
        """At the panel of the unit at hand."""
        b, nest, shape = self.b, self.nest, self.shape
        groups = self._value(self.sizes[0]) if self.nest.groups is not None else b.index(1)
        offset = b.mul(b.mul(self._number_of(outer, self.panel), groups), shape.nr)

        def base(grain: Grain | None) -> Value | None:
            if grain is None:
                return None
            memory = memory_type(nest.spec.operands[grain.operand].dtype)
            return b.element_pointer(self.share.pointer(grain.operand), offset, memory)

        return Codes(self.step, self.decoder, base(nest.right.zero), base(nest.right.scale), shape.nr)

    # -- many rows --------------------------------------------------------------------------------------------------
    def _sum(self, outer: dict[str, Value], row: Value, rows: Value, last: Value, column: Value) -> None:
        b, nest = self.b, self.nest
        self.codes, self.words = self._codes(outer), self._right(outer, self.panel, {})
        run = self._groups_at_once()
        if run < 2:
            super()._sum(outer, row, rows, last, column)
            return
        groups, size = self._value(self.sizes[0]), self._value(self.sizes[1])
        first, inner = (f"d{k}" for k in nest.reduction)
        with b.loop(b.index(0), groups, run) as loop:
            count = b.minimum(b.sub(groups, loop.index), run)
            with b.loop(b.index(0), count) as each:
                self._decode({first: b.add(loop.index, each.index), inner: b.index(0)}, size, b.mul(each.index, size))
            at = {**outer, first: loop.index, inner: b.index(0), "block": b.mul(count, size)}
            self._add_rows(self.buffered, at, row, rows, last)

    def _groups_at_once(self) -> int:
        """How many whole groups one block holds, where K is one dimension to the left factor."""
        nest = self.nest
        if self.pairs or len(nest.reduction) != 2 or nest.groups is None:
            return 1
        outer, inner = (nest.stride(nest.left.load, k) for k in nest.reduction)
        size = self.sizes[1].constant
        return self.steps // size if size and outer == inner * size else 1

    def _add_block(self, at: dict[str, Value], row: Value, rows: Value, last: Value, column: Value) -> None:
        self._decode(at, at["block"], self.b.index(0))
        scales = (
            self.codes.scales(self._group(at), self.shape.vectors) if self.pairs and self.nest.right.scale else None
        )
        self._add_rows(self.buffered, at, row, rows, last, scales)

    def _group(self, at: dict[str, Value]) -> Value:
        return self.b.index(0) if self.nest.groups is None else at[f"d{self.nest.groups}"]

    def _decode(self, at: dict[str, Value], steps: Value, row: Value) -> None:
        """Fill the buffer from ``row`` on with so many steps of K from ``at`` on, all of one group."""
        b, nest, shape, codes = self.b, self.nest, self.shape, self.codes
        *above, inner = nest.reduction
        pointer, memory = self.words, self.step.memory(nest.right)
        for k, stride in zip(above, self._right_strides(), strict=False):
            pointer = b.element_pointer(pointer, b.mul(at[f"d{k}"], self._value(stride)), memory)
        width = shape.nr * shape.together
        pointer = b.element_pointer(pointer, b.mul(b.div(at[f"d{inner}"], shape.group), width), memory)
        zeros = codes.zeros(self._group(at), shape.vectors)
        if self.pairs:
            self._decode_pairs(pointer, width, steps, zeros)
            return
        scales = codes.scales(self._group(at), shape.vectors)
        whole = b.div(b.add(steps, shape.group - 1), shape.group)
        with b.loop(b.index(0), whole) as loop:
            line = b.element_pointer(pointer, b.mul(loop.index, width), memory)
            for j, (zero, scale) in enumerate(zip(zeros, scales, strict=True)):
                loaded = codes.load(b.element_pointer(line, b.index(j * shape.lanes * shape.together), memory))
                for u in range(shape.group):
                    value = codes.value(loaded, u, zero)
                    value = value if scale is None else b.op("arith.mulf", value, scale)
                    b.store(value, self._place(self.block, b.add(b.add(row, b.mul(loop.index, shape.group)), u), j))

    def _decode_pairs(self, pointer: Value, width: int, steps: Value, zeros: list[Value | None]) -> None:
        """Fill the buffer with pairs of neighbours of K from ``pointer`` on, in bf16; the last of an odd number has any neighbour."""
        b, shape, codes = self.b, self.shape, self.codes
        memory, group = self.step.memory(self.nest.right), shape.group
        together = max(group, 2)

        def line(number: Value, j: int) -> Value:
            start = b.element_pointer(pointer, b.mul(number, width), memory)
            return codes.load(b.element_pointer(start, b.index(j * shape.lanes * shape.together), memory))

        with b.loop(b.index(0), b.div(b.add(steps, together - 1), together)) as loop:
            for j, zero in enumerate(zeros):
                if group > 1:
                    loaded = line(loop.index, j)
                    values = [codes.value(loaded, u, zero) for u in range(group)]
                else:
                    first = b.mul(loop.index, 2)
                    second = b.minimum(b.add(first, 1), b.sub(steps, 1))
                    values = [codes.value(line(number, j), 0, zero) for number in (first, second)]
                bits = [b.cast("arith.bitcast", v, "i32") for v in values]
                for u in range(together // 2):
                    low = b.op("arith.shrui", bits[2 * u], b.constant(16, "i32", shape.lanes))
                    high = b.op("arith.andi", bits[2 * u + 1], b.constant(-65536, "i32", shape.lanes))
                    pair = b.cast("arith.bitcast", b.op("arith.ori", low, high), "f32")
                    b.store(pair, self._place(self.block, b.add(b.mul(loop.index, together // 2), u), j))
