"""Products with a packed factor of integers or low-bit codes, summed as floats: linears whose weights alone are quantized.

Few rows (decoding a text) are bound by the bytes of the codes: their tile makes floats of a step's codes in registers, and scales the
sum of each group, not its terms. Many rows (a prompt) are bound by the multiply-adds: a block of a panel becomes floats, scaled ones,
in a buffer on the stack, once for all row tiles of the unit, as the ``turned`` kernel copies its factor. A kernel whose number of rows
is known only at run time holds both.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from effc.compiler.codegen.cpu.access import memory_type
from effc.compiler.codegen.cpu.bf16_pairs import PAIRED, dot_pairs
from effc.compiler.codegen.cpu.contraction.ahead import Ahead
from effc.compiler.codegen.cpu.contraction.chains import chain_length
from effc.compiler.codegen.cpu.contraction.code_rows import DECODING, few_rows, in_pairs
from effc.compiler.codegen.cpu.contraction.factors import Step
from effc.compiler.codegen.cpu.contraction.rows import by_height
from effc.compiler.codegen.cpu.contraction.sides import Grain
from effc.compiler.codegen.cpu.contraction.tile import Accumulators, Tile
from effc.compiler.codegen.cpu.contraction.turned import BLOCK_BYTES, TurnedKernel
from effc.compiler.codegen.cpu.low_bit import Decoder
from effc.compiler.codegen.cpu.lowp import bits_of
from effc.compiler.codegen.cpu.text import Builder, Value, vector_type
from effc.compiler.codegen.cpu.threads import Share
from effc.compiler.ir.expr import Expr, const, minimum, product
from effc.compiler.ir.spec import ITEM_SIZE


@dataclass(frozen=True)
class Codes:
    """How the right factor's codes become floats. ``zero``, ``scale``: pointers to the panel's first, ``nr`` columns a group."""

    step: Step
    decoder: Decoder | None
    zero: Value | None
    scale: Value | None
    nr: int

    def load(self, pointer: Value) -> Value:
        """One vector of words of codes, or of single codes."""
        step = self.step
        return step.b.load(pointer, vector_type(step.lanes, step.memory(step.nest.right)))

    def value(self, loaded: Value, code: int, zero: Value | None) -> Value:
        """Number ``code`` of what ``load`` gave, less its zero point, not scaled."""
        step = self.step
        value = step.convert(step.nest.right, loaded) if self.decoder is None else self.decoder.value(loaded, code)
        return value if zero is None else step.b.op("arith.subf", value, zero)

    def pairs(self, loaded: Value, number: int) -> Value:
        """Pair ``number`` of what ``load`` gave, in bf16."""
        assert self.decoder is not None, "bytes are not taken by pairs in registers"
        return self.decoder.pairs(loaded, number)

    def zeros(self, group: Value, vectors: int) -> list[Value | None]:
        """The zero points of a group, by column vector."""
        return self._grains(self.step.nest.right.zero, self.zero, group, vectors)

    def scales(self, group: Value, vectors: int) -> list[Value | None]:
        return self._grains(self.step.nest.right.scale, self.scale, group, vectors)

    def _grains(self, grain: Grain | None, base: Value | None, group: Value, vectors: int) -> list[Value | None]:
        if grain is None or base is None:
            return [None] * vectors
        step, b = self.step, self.step.b
        dtype = step.nest.spec.operands[grain.operand].dtype
        memory = memory_type(dtype)
        line = b.element_pointer(base, b.mul(group, self.nr), memory)
        found: list[Value | None] = []
        for j in range(vectors):
            value, held = (
                b.load(b.element_pointer(line, b.index(j * step.lanes), memory), vector_type(step.lanes, memory)),
                dtype,
            )
            for i in grain.chain:
                instr = step.nest.spec.body[i]
                value, held = step.ops.emit(instr, [value], [held]), instr.dtype
            found.append(value)
        return found


@dataclass(frozen=True)
class CodesTile(Tile):
    """A register tile that makes floats of codes step by step. ``zeros``: of the group at hand.

    ``pairs``: products are summed by pairs of bf16. Then zero points are taken off the sums, by those of the rows' values, which are
    further accumulators behind the others.
    """

    codes: Codes | None = None
    zeros: tuple[Value | None, ...] = ()
    pairs: bool = False

    def grouped(self, groups: Value | None, left: list[Value], right: Value) -> list[Value]:
        """Sums over K, flat; K is ``groups`` times all its inner dimensions, or all of its dimensions make one group."""
        b = self.b
        if groups is None:
            return self._group(b.index(0), 0, left, right, None)
        with b.loop(b.index(0), groups, carried=self._zeros()) as loop:
            loop.yield_(self._group(loop.index, 1, *self._advance(0, left, right, loop.index), loop.carried))
        return loop.results

    def _group(
        self, group: Value, depth: int, left: list[Value], right: Value, total: Accumulators | None
    ) -> Accumulators:
        """``total`` plus the scaled sum of one group."""
        b, codes = self.b, self._codes
        part = replace(self, zeros=tuple(codes.zeros(group, self.vectors)))
        sums = part._reduce(depth, left, right, part._zeros())
        count, scales = self.rows * self.vectors, codes.scales(group, self.vectors) * self.rows
        if sums[count:]:
            minus = [None if z is None else b.emit(f"arith.negf {z.name} : {z.type}", z.type) for z in part.zeros]
            sums = [
                x if (z := minus[n % self.vectors]) is None else b.op("math.fma", sums[count + n // self.vectors], z, x)
                for n, x in enumerate(sums[:count])
            ]
        if total is None:
            return [x if s is None else b.op("arith.mulf", x, s) for x, s in zip(sums, scales, strict=True)]
        return [
            b.op("arith.addf", t, x) if s is None else b.op("math.fma", x, s, t)
            for t, x, s in zip(total, sums, scales, strict=True)
        ]

    @property
    def _codes(self) -> Codes:
        assert self.codes is not None, "given by the kernel"
        return self.codes

    def _step(
        self,
        left: list[Value],
        right: Value,
        total: Accumulators,
        outside: Collection[int] = (),
        points: int | None = None,
    ) -> Accumulators:
        if self.pairs:
            return self._step_of_pairs(left, right, total, points or self.step.group)
        b, step, codes = self.b, self.step, self._codes
        points = points or step.group
        loaded = [
            codes.load(self._at(right, b.mul(self.vector_step, j), self._right_element)) for j in range(self.vectors)
        ]
        across = self._value(self.left_strides[-1])
        rows = [step.left(self._row(left, i), points, across, None) for i in range(self.rows)]
        result = list(total)
        for u in range(points):
            columns = [codes.value(word, u, self.zeros[j]) for j, word in enumerate(loaded)]
            for i, row in enumerate(rows):
                for j, column in enumerate(columns):
                    at = i * self.vectors + j
                    result[at] = b.op("math.fma", row[u], column, result[at])
        return result

    def _step_of_pairs(self, left: list[Value], right: Value, total: Accumulators, points: int) -> Accumulators:
        b, step, codes = self.b, replace(self.step, group=2, dot=True), self._codes
        loaded = [
            codes.load(self._at(right, b.mul(self.vector_step, j), self._right_element)) for j in range(self.vectors)
        ]
        across = self._value(self.left_strides[-1])
        ones = _ones(b)
        result = list(total)
        for u in range(-(-points // 2)):
            columns = [codes.pairs(word, u) for word in loaded]
            for i in range(self.rows):
                pointer = self._at(self._row(left, i), b.mul(across, 2 * u), self._left_element)
                (row,) = step.left(pointer, min(2, points - 2 * u), across, None)
                for j, column in enumerate(columns):
                    at = i * self.vectors + j
                    result[at] = dot_pairs(b, result[at], row, column)
                if len(result) > self.rows * self.vectors:
                    at = self.rows * self.vectors + i
                    result[at] = dot_pairs(b, result[at], row, ones)
        return result

    def _zeros(self) -> Accumulators:
        further = self.rows if self.pairs and any(z is not None for z in self.zeros) else 0
        return [self.step.zero()] * (self.rows * self.vectors + further)


def _ones(b: Builder) -> Value:
    """32 times 1, in bf16."""
    bits = b.constant(bits_of(1, "bf16"), "i16", PAIRED)
    return b.emit(f"vector.bitcast {bits.name} : {bits.type} to vector<{PAIRED}xbf16>", f"vector<{PAIRED}xbf16>")


class CodesKernel(TurnedKernel):
    """See the module's docstring."""

    turned = False

    def _prepare(self, share: Share) -> None:
        format_ = self.nest.right.format
        self.decoder = None if format_ is None else Decoder(self.b, self.target, format_)
        self.few, self.pairs = few_rows(self.nest.size(self.nest.row)), in_pairs(self.nest, self.target)
        rows = self.nest.size(self.nest.row).constant
        if rows is not None and rows <= self.few:
            return
        b, shape = self.b, self.shape
        group = 2 if self.pairs else 1
        self.buffered = replace(self.step, group=group, dot=self.pairs, turned=True)
        most = group * (BLOCK_BYTES // (shape.nr * ITEM_SIZE[self.accumulator]))
        together = max(shape.group, group)
        chain = chain_length(packed=True) if self.buffered.rounds else most
        self.steps = max(min(most, chain) // together, 1) * together
        # The last word of a group is decoded whole.
        self.block = b.stack((self.steps + together) * shape.nr // group, self.accumulator)
        self.sums = b.stack(self._rows_of_unit() * shape.nr, self.accumulator)

    def _unit_cycles(self) -> Expr:
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
        zero = b.index(0)
        outer = {f"d{i}": at.get(f"d{i}", zero) for i in nest.outer}
        column = b.mul(self.panel, shape.nr)
        start = {**outer, f"d{nest.column}": column}
        if nest.row is not None:
            start[f"d{nest.row}"] = zero
        right = self._right(outer, self.panel, start)
        tile = CodesTile(
            self.step,
            rows,
            shape.vectors,
            nest.stride(nest.left.load, nest.row).constant,
            self.sizes,
            [nest.stride(nest.left.load, k) for k in nest.reduction],
            self._right_strides(),
            self.share.symbols,
            max(shape.unroll // shape.group, 1),
            None,
            None,
            b.mul(self._column_stride(), shape.lanes),
            Ahead.stream(b, right, shape.nr * self._bits() // 8),
            codes=self._codes(outer),
            pairs=self.pairs and self.decoder is not None,
        )
        groups = self._value(self.sizes[0]) if self.nest.groups is not None else None
        sums = tile.grouped(groups, self._left(start, rows), right)
        columns = [b.add(column, j * shape.lanes) for j in range(shape.vectors)]
        split = [sums[i * shape.vectors : (i + 1) * shape.vectors] for i in range(rows)]
        self.epilogue.write(outer, [b.index(i) for i in range(rows)], columns, self._masks(column), split)

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
