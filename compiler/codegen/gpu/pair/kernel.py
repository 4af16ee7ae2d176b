"""The kernel of a pair of products: what the first makes of a tile of rows is a factor of the second, and never in memory."""

from __future__ import annotations

from collections.abc import Sequence

from torch_mlir import ir

from effc.compiler.codegen.gpu.body import Frame, numbered
from effc.compiler.codegen.gpu.builder import Builder, dtype_of
from effc.compiler.codegen.gpu.contraction.kernel import Product
from effc.compiler.codegen.gpu.contraction.schedule import Tiling
from effc.compiler.codegen.gpu.launch import Arguments, Emitted, Launch, blocks, kernel
from effc.compiler.codegen.gpu.loops import Loops
from effc.compiler.codegen.gpu.pair.reading import Pair, read_pair
from effc.compiler.codegen.gpu.pair.schedule import PairTiling, chosen, norm_plan
from effc.compiler.codegen.gpu.target import GpuTarget
from effc.compiler.ir.errors import LoweringError
from effc.compiler.ir.spec import KernelSpec


def emit(spec: KernelSpec, target: GpuTarget, name: str, *, aligned: bool = True) -> Emitted:
    """One launch. LoweringError: the stages of ``spec`` are no pair, or no tile of it fits the GPU."""
    pair = read_pair(spec)
    if isinstance(pair, str):
        raise LoweringError(f"this block is no GPU kernel: {pair}")
    tiling = chosen(pair, target, spec.schedule)
    if tiling is None:
        raise LoweringError("this block is no GPU kernel: what lies between its products does not fit a program")
    text = kernel(spec, name, lambda b, given: _Pair(b, pair, tiling, target, given).emit(), aligned=aligned)
    grid = blocks(pair.rows, tiling.bm) * tiling.parts
    first, second = pair.first, pair.second
    numbers = (
        *numbered(first.spec, first.rows, first.columns, (*first.outer_sums, *first.sums)),
        *numbered(second.spec, second.rows, second.columns, second.sums),
    )
    return Emitted((Launch(name, text, grid, tiling.warps, tiling.stages),), numbers=numbers)


class _Pair:
    def __init__(self, b: Builder, pair: Pair, tiling: PairTiling, target: GpuTarget, given: Arguments) -> None:
        self.b, self.pair, self.tiling, self.target = b, pair, tiling, target
        t = tiling
        self.first = Product(b, pair.first, Tiling(t.bm, t.bh, t.bk), target, given)
        self.second = Product(b, pair.second, Tiling(t.bm, t.bn, t.bh), target, given)
        self.norm = None if pair.norm is None else Loops(b, norm_plan(pair.norm, t), given)

    def emit(self) -> None:
        b, t = self.b, self.tiling
        program, parts = b.program_id(), b.constant(t.parts, "i32")
        row, part = b.op("arith.divsi", program, parts), b.op("arith.remsi", program, parts)
        if self.norm is not None and self.pair.norm is not None:
            link = self.pair.norm.link
            self.first.left_values[link.read] = self.norm.values_of(row).value(link.stored)
        if t.hold == "hidden":
            self._for_all_columns(row, part)
        else:
            self._for_all_hidden(row, part)

    def _for_all_columns(self, row: ir.Value, part: ir.Value) -> None:
        """What lies between is one tile; a tile of results after the other is made of it."""
        b, t = self.b, self.tiling
        hidden = self._hidden(row, b.constant(0, "i32"))
        tiles = self.second.size(blocks(self.pair.columns, t.bn))
        each = b.op(
            "arith.divsi", b.op("arith.addi", tiles, b.constant(t.parts - 1, "i32")), b.constant(t.parts, "i32")
        )
        low = b.op("arith.muli", part, each)

        def tile(column: ir.Value, _: Sequence[ir.Value]) -> list[ir.Value]:
            self.second.start(row, column)
            self.second.finish(self._added(hidden, b.constant(0, "i32"), self._nothing()))
            return []

        b.loop(low, b.op("arith.minsi", b.op("arith.addi", low, each), tiles), 1, [], tile)

    def _for_all_hidden(self, row: ir.Value, part: ir.Value) -> None:
        """A tile of results, to which what a tile of what lies between makes is added after the other."""
        b, t = self.b, self.tiling

        def tile(number: ir.Value, carried: Sequence[ir.Value]) -> list[ir.Value]:
            hidden = self._hidden(row, number)
            self.second.start(row, part)
            return [self._added(hidden, number, carried[0])]

        slices = b.constant(-(-self.pair.hidden // t.bh), "i32")
        (total,) = b.loop(b.constant(0, "i32"), slices, 1, [self._nothing()], tile)
        self.second.start(row, part)
        self.second.finish(total)

    def _nothing(self) -> ir.Value:
        return self.b.constant(0, self.pair.second.accumulator, (self.tiling.bm, self.tiling.bn))

    def _hidden(self, row: ir.Value, number: ir.Value) -> ir.Value:
        """The tile ``number`` of what the first product stores of a tile of rows."""
        first = self.first
        first.start(row, number)
        found = first.body({self.pair.first.contract: first.total()}).value(self.pair.link.stored)
        return self.b.spread(found, (self.tiling.bm, self.tiling.bh))

    def _added(self, hidden: ir.Value, number: ir.Value, total: ir.Value) -> ir.Value:
        """``total`` and the product of a tile of what lies between."""
        b, pair, second = self.b, self.pair, self.second
        start = b.op("arith.muli", number, b.constant(self.tiling.bh, "i32"))
        sums = second.sums(start, 1)
        frame = Frame(b, pair.second.spec, [second.rows(0), sums], second.scalars)
        body = second.body({pair.link.read: hidden}, frame)
        factor = pair.second.left
        value = body.value(factor.value)
        if dtype_of(value) != factor.dtype:
            value = body.ops.cast("arith.truncf", value, factor.dtype)
        if sums.mask is not None:  # what is beyond may be anything: NaN times zero too
            value = b.select(sums.mask, value, b.constant(0, factor.dtype))
        return b.dot(value, second.right(start), total, tf32=self.target.rounds(pair.second.spec))
