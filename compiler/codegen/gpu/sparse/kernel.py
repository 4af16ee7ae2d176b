"""The kernel of a sparse product: a program goes through the blocks that one row of blocks stores, and gathers what they multiply."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch_mlir import ir

from effc.compiler.codegen.gpu.body import Axis, Body, Frame, axis_size, flat_size, numbered, unflattened
from effc.compiler.codegen.gpu.builder import Builder, dtype_of
from effc.compiler.codegen.gpu.indices import evaluated
from effc.compiler.codegen.gpu.launch import Arguments, Emitted, Launch, blocks, kernel
from effc.compiler.codegen.gpu.sparse.form import Form, find
from effc.compiler.codegen.gpu.target import GpuTarget
from effc.compiler.ir.errors import LoweringError
from effc.compiler.ir.expr import const
from effc.compiler.ir.spec import KernelSpec


def emit(spec: KernelSpec, target: GpuTarget, name: str, *, aligned: bool = True) -> Emitted:
    """One launch, of a spec whose schedule says ``sparse`` (`choice`). LoweringError: it is no sparse product."""
    form = find(spec)
    if isinstance(form, str):
        raise LoweringError(f"no GPU kernel leaves out zeros here: {form}")
    schedule = spec.schedule
    tiles = schedule["sparse"] == "tiles"
    build = _Tiles if tiles else _Row
    text = kernel(form.spec, name, lambda b, given: build(b, form, target, given).emit(), aligned=aligned)
    grid = const(form.lists) * blocks(flat_size(form.spec, form.rows), int(schedule["bm"]))
    numbers = numbered(form.spec, form.rows)
    return Emitted((Launch(name, text, grid, int(schedule["warps"]), int(schedule["stages"])),), numbers=numbers)


class _Sparse(ABC):
    """What both methods share: the row of blocks ``list`` of this program, and its steps."""

    def __init__(self, b: Builder, form: Form, target: GpuTarget, given: Arguments) -> None:
        self.b, self.form, self.target, self.given = b, form, target, given
        self.spec, self.sparsity = form.spec, form.sparsity
        self.bm, self.bk = int(form.spec.schedule["bm"]), int(form.spec.schedule["bk"])
        *_, self.places, self.starts = given.operands
        self.elements = given.operands[form.weight]

    def emit(self) -> None:
        b, lists = self.b, self.b.constant(self.form.lists, "i32")
        program = b.program_id()
        self.list = b.op("arith.remsi", program, lists)
        self.begin(b.op("arith.divsi", program, lists))
        first = b.pointers(self.starts, self.list)
        low, high = b.load(first), b.load(b.pointers(first, b.constant(1, "i32")))

        def step(block: ir.Value, carried: Sequence[ir.Value]) -> list[ir.Value]:
            return [self.added(block, high, carried[0])]

        zero = b.constant(0, "f32", (self.height, self.sparsity.rows))
        (total,) = b.loop(low, high, self.bk // self.sparsity.columns, [zero], step)
        frame, total = self.finished(total)
        body = self.body(frame, {self.form.contract: total})
        for i, instr in enumerate(self.spec.body):
            if instr.op == "store":
                body.store(instr)
            elif instr.op == "check":
                body.check(i)

    @property
    @abstractmethod
    def height(self) -> int:
        """Of the tile of sums; its width is that of the row of blocks."""

    @abstractmethod
    def begin(self, row: ir.Value) -> None:
        """For the block of rows ``row``."""

    @abstractmethod
    def added(self, block: ir.Value, high: ir.Value, total: ir.Value) -> ir.Value:
        """``total`` and the products of the step that begins with ``block``, of those below ``high``."""

    @abstractmethod
    def finished(self, total: ir.Value) -> tuple[Frame, ir.Value]:
        """The tile of results, and their sums."""

    def body(self, frame: Frame, known: dict[int, ir.Value]) -> Body:
        return Body(self.b, self.spec, frame, self.given.operands, self.given.error, known)

    def columns(self) -> Axis:
        """Those of the row of blocks, along axis 1."""
        b, rows = self.b, self.sparsity.rows
        index = b.op("arith.addi", b.op("arith.muli", self.list, b.constant(rows, "i32")), b.range(rows, 1, 2))
        inside = None
        if self.form.columns % rows:
            inside = b.compare("arith.cmpi", "slt", index, b.constant(self.form.columns, "i32"))
        return Axis((self.form.column,), index, inside)

    def sums(self, block: ir.Value, high: ir.Value, axis: int) -> Axis:
        """Elements of the sum of the step that begins with ``block``: where each of its blocks is."""
        b, width = self.b, self.b.constant(self.sparsity.columns, "i32")
        local = b.range(self.bk, axis, 2)
        number = b.op("arith.addi", block, b.op("arith.divsi", local, width))
        inside = b.compare("arith.cmpi", "slt", number, high)
        place = b.load(b.pointers(self.places, number), inside)
        index = b.op("arith.addi", place, b.op("arith.remsi", local, width))
        if self.form.length % self.sparsity.columns:
            within = b.compare("arith.cmpi", "slt", index, b.constant(self.form.length, "i32"))
            inside = b.op("arith.andi", inside, within)
        return Axis(self.form.sums, index, inside)

    def block_elements(self, block: ir.Value, sums: Axis) -> ir.Value:
        """Of the matrix in the step that begins with ``block``: ``[bk, rows]``, zero where ``sums``, of axis 0, are over."""
        b, rows = self.b, self.b.constant(self.sparsity.rows, "i32")
        start = b.op("arith.muli", block, b.constant(self.sparsity.columns, "i32"))
        local = b.op("arith.muli", b.range(self.bk, 0, 2), rows)
        offset = b.op("arith.addi", local, b.range(self.sparsity.rows, 1, 2))
        base = b.pointers(self.elements, b.op("arith.muli", start, rows))
        return b.load(b.pointers(base, offset), sums.mask)

    def factor(self, frame: Frame) -> ir.Value:
        body = self.body(frame, {})
        value = body.value(self.form.factor)
        assert dtype_of(value) == self.form.dtype, "both factors are of one dtype"
        return value


class _Tiles(_Sparse):
    """A block of rows times the row of blocks."""

    @property
    def height(self) -> int:
        return self.bm

    def begin(self, row: ir.Value) -> None:
        b, form = self.b, self.form
        size, local = axis_size(self.spec, form.rows), b.range(self.bm, 0, 2)
        index = b.op("arith.addi", b.op("arith.muli", row, b.constant(self.bm, "i32")), local)
        inside = None
        if size.constant is None or size.constant % self.bm:
            inside = b.compare("arith.cmpi", "slt", index, evaluated(b, size, self.given.symbols))
        self.rows = Axis(form.rows, index, inside)

    def added(self, block: ir.Value, high: ir.Value, total: ir.Value) -> ir.Value:
        b, sums = self.b, self.sums(block, high, 1)
        frame = Frame(b, self.spec, [self.rows, sums], self.given.symbols)
        left = b.spread(self.factor(frame), (self.bm, self.bk))
        assert sums.mask is not None
        left = b.select(sums.mask, left, b.constant(0, self.form.dtype))
        right = self.block_elements(block, self.sums(block, high, 0))
        return b.dot(left, right, total, tf32=self.target.rounds(self.spec))

    def finished(self, total: ir.Value) -> tuple[Frame, ir.Value]:
        return Frame(self.b, self.spec, [self.rows, self.columns()], self.given.symbols), total


class _Row(_Sparse):
    """One row times the row of blocks: as many sums as a step has elements, which are added at the end."""

    @property
    def height(self) -> int:
        return self.bk

    def begin(self, row: ir.Value) -> None:
        at = unflattened(self.b, self.spec, self.given.symbols, self.form.rows, row)
        self.scalars = {**self.given.symbols, **at}

    def added(self, block: ir.Value, high: ir.Value, total: ir.Value) -> ir.Value:
        b, sums = self.b, self.sums(block, high, 0)
        frame = Frame(b, self.spec, [sums, Axis((), b.constant(0, "i32", (1, 1)), None)], self.scalars)
        left, right = self.factor(frame), self.block_elements(block, sums)
        if self.form.dtype != "f32":
            left, right = (b.op("arith.extf", v, dtype="f32") for v in (left, right))
        assert sums.mask is not None
        left = b.select(sums.mask, left, b.constant(0.0, "f32"))
        return b.op("arith.addf", total, b.op("arith.mulf", left, right))

    def finished(self, total: ir.Value) -> tuple[Frame, ir.Value]:
        b = self.b
        (found,) = b.reduce([total], 0, lambda x, y: [b.op("arith.addf", x[0], y[0])])
        axes = [Axis((), b.constant(0, "i32", (1, 1)), None), self.columns()]
        return Frame(b, self.spec, axes, self.scalars), found
