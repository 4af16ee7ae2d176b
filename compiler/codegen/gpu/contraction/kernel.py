"""The kernel of a contraction: a tile of results a program, factors block by block through tensor cores, the epilogue on the tile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch_mlir import ir

from effc.compiler.codegen.gpu import loops
from effc.compiler.codegen.gpu.body import Axis, Body, Frame, axis_size, flat_size, numbered, paired, unflattened
from effc.compiler.codegen.gpu.builder import Builder, dtype_of
from effc.compiler.codegen.gpu.contraction.descriptors import Described, both_described
from effc.compiler.codegen.gpu.contraction.rewritten import as_loops, folding
from effc.compiler.codegen.gpu.contraction.roles import Factor, Roles, find
from effc.compiler.codegen.gpu.contraction.schedule import Tiling, chosen
from effc.compiler.codegen.gpu.contraction.tail import STRIP, Share, added, stored
from effc.compiler.codegen.gpu.contraction.unsigned import MissingSums
from effc.compiler.codegen.gpu.dialect import shape_of
from effc.compiler.codegen.gpu.indices import MOST_I32, Step, evaluated
from effc.compiler.codegen.gpu.launch import Arguments, Emitted, Launch, blocks, kernel
from effc.compiler.codegen.gpu.sparse import kernel as sparse
from effc.compiler.codegen.gpu.target import GpuTarget
from effc.compiler.ir.errors import LoweringError
from effc.compiler.ir.expr import Expr, const, minimum, product, var
from effc.compiler.ir.spec import Dim, Instr, KernelSpec, Operand, Schedule


def emit(spec: KernelSpec, target: GpuTarget, name: str, *, aligned: bool = True) -> Emitted:
    """One launch, or two where the sum is split; products that tensor cores do not take become loops. LoweringError: neither does."""
    if spec.schedule.get("sparse"):
        return sparse.emit(spec, target, name, aligned=aligned)
    roles = find(spec)
    if isinstance(roles, str):
        try:
            return loops.emit(as_loops(spec), target, name, aligned=aligned)
        except LoweringError as error:
            raise LoweringError(f"this contraction is not supported: {roles}; as loops: {error}") from error
    tiling = chosen(roles, target)
    if not aligned:  # as matrices that descriptors tell of are
        tiling = replace(tiling, descriptors=0)
    if tiling.tail > 1:
        return _with_tail(roles, tiling, target, name, aligned)
    text = kernel(roles.spec, name, lambda b, given: Product(b, roles, tiling, target, given).emit(), aligned=aligned)
    tiles = blocks(flat_size(roles.spec, roles.rows), tiling.bm) * blocks(
        flat_size(roles.spec, roles.columns), tiling.bn
    )
    grid = tiles * flat_size(roles.spec, roles.batch) * tiling.split
    grid = minimum(grid, const(target.processors)) if tiling.persistent else grid
    first = Launch(name, text, grid, tiling.warps, tiling.stages)
    numbers = numbered(roles.spec, roles.rows, roles.columns, (*roles.outer_sums, *roles.sums))
    if tiling.split == 1:
        return Emitted((first,), numbers=numbers)
    points = flat_size(roles.spec, (*roles.batch, *roles.rows, *roles.columns))
    adding = loops.emit(_sum_of_parts(roles, tiling.split), target, f"{name}_sum", aligned=aligned, scratch=True)
    return Emitted((first, *adding.launches), points * tiling.split, (*numbers, *adding.numbers))


def _with_tail(roles: Roles, tiling: Tiling, target: GpuTarget, name: str, aligned: bool) -> Emitted:
    """The launches of `tail`, of sizes that are known."""
    tiles = blocks(flat_size(roles.spec, roles.rows), tiling.bm) * blocks(
        flat_size(roles.spec, roles.columns), tiling.bn
    )
    assert tiles.constant is not None
    rest = tiles.constant % target.processors
    whole, parts = Share(0, tiles.constant - rest), Share(tiles.constant - rest, rest, tiling.tail)
    once, last = replace(tiling, tail=1), replace(tiling, tail=1, persistent=0)

    def launch(suffix: str, share: Share, tiling: Tiling, grid: int) -> Launch:
        text = kernel(
            roles.spec,
            name + suffix,
            lambda b, given: Product(b, roles, tiling, target, given, share).emit(),
            aligned=aligned,
        )
        return Launch(name + suffix, text, const(grid), tiling.warps, tiling.stages)

    first = target.processors if tiling.persistent else whole.count
    launches = (
        launch("", whole, once, first),
        launch("_tail", parts, last, rest * parts.parts),
        launch("_sum", replace(parts, adds=True), last, rest * (tiling.bm // STRIP)),
    )
    return Emitted(launches, const(rest * parts.parts * tiling.bm * tiling.bn))


def _sum_of_parts(roles: Roles, split: int) -> KernelSpec:
    """The epilogue on the sum of the parts: ``loops`` over the same parallel dims, scratch memory being the last operand."""
    spec = roles.spec
    parallel = [d for d in spec.dims if d.kind == "parallel"]
    order = (*roles.batch, *roles.rows, *roles.columns)
    point: Expr = const(0)
    for dim in order:
        point = point * spec.dims[dim].size + var(f"d{dim}")
    points = flat_size(spec, order)
    address = var(f"d{len(parallel)}") * points + point
    load = Instr("load", (), "f32", (("address", address), ("operand", len(spec.operands))))
    body = folding(spec, load)
    operands = (*spec.operands, Operand("f32", "read", points * split))
    dims = (*parallel, Dim(const(split), "reduction"))
    return replace(spec, template="loops", dims=dims, operands=operands, body=body, schedule=Schedule())


class Product:
    """The product ``roles``, tile by tile, or a ``share`` of its tiles: where each lies `start` says."""

    def __init__(
        self,
        b: Builder,
        roles: Roles,
        tiling: Tiling,
        target: GpuTarget,
        given: Arguments,
        share: Share | None = None,
    ) -> None:
        self.b, self.roles, self.tiling, self.target, self.given, self.share = b, roles, tiling, target, given, share
        self.parts = share.parts if share is not None else tiling.split
        self.spec, self.missing = roles.spec, MissingSums(b, roles, tiling)
        self.scalars = dict(given.symbols)
        #: Of instructions that only the left factor needs, on all of its tile: values that are not to be computed.
        self.left_values: dict[int, ir.Value] = {}

    def size(self, e: Expr) -> ir.Value:
        return evaluated(self.b, e, self.given.symbols)

    def emit(self) -> None:
        b, roles, tiling = self.b, self.roles, self.tiling
        if self.share is not None and self.share.adds:
            self._add_parts(self.share)
            return
        if not tiling.persistent:
            self._tile(b.program_id())
            return
        self.matrices = self._matrices()
        tiles = blocks(flat_size(self.spec, roles.rows), tiling.bm) * blocks(
            flat_size(self.spec, roles.columns), tiling.bn
        )
        parts = tiles * flat_size(self.spec, roles.batch) * tiling.split
        count = self.size(parts if self.share is None else const(self.share.count))
        b.loop(b.program_id(), count, b.programs(), [], lambda number, _: self._tile(number), flat=True)

    def _tile(self, number: ir.Value) -> list[ir.Value]:
        """Tile ``number`` of all, or of all parts of the sum."""
        part, batch, row, column = self._place(number)
        self.start(row, column, batch)
        total = self.total(part)
        if self.share is not None and self.parts > 1:
            tile = self.b.op("arith.remsi", number, self.b.constant(self.share.count, "i32"))
            stored(self.b, self.given.scratch, self.share, self.tiling, tile, part, total)
        elif self.parts > 1:
            self._store_part(self.frame(), part, batch, total)
        else:
            self.finish(total)
        return []

    def _add_parts(self, share: Share) -> None:
        """Of a strip of a tile whose parts lie in scratch memory."""
        b, tiling = self.b, self.tiling
        strips = b.constant(tiling.bm // STRIP, "i32")
        tile, strip = (b.op(f"arith.{op}si", b.program_id(), strips) for op in ("div", "rem"))
        _, _, row, column = self._place(tile)
        start = b.op("arith.muli", strip, b.constant(STRIP, "i32"))
        self.row_start = b.op("arith.addi", b.op("arith.muli", row, b.constant(tiling.bm, "i32")), start)
        self.column_start = b.op("arith.muli", column, b.constant(tiling.bn, "i32"))
        total = added(b, self.given.scratch, share, tiling, tile, strip)
        rows = self._axis(self.roles.rows, self.row_start, STRIP, 0)
        self.finish(total, Frame(b, self.spec, [rows, self.columns(1)], self.scalars))

    def start(self, row: ir.Value, column: ir.Value, batch: ir.Value | None = None) -> None:
        """Of a point of the batch, the tile that begins with so many rows and columns of tiles before it."""
        b, roles, tiling = self.b, self.roles, self.tiling
        self.scalars = dict(self.given.symbols)
        if batch is not None:
            self.scalars.update(unflattened(b, self.spec, self.given.symbols, roles.batch, batch))
        self.row_start = b.op("arith.muli", row, b.constant(tiling.bm, "i32"))
        self.column_start = b.op("arith.muli", column, b.constant(tiling.bn, "i32"))
        if not tiling.persistent:  # which made them once, for all tiles
            self.matrices = self._matrices()

    def frame(self) -> Frame:
        """The tile's, without sums."""
        return Frame(self.b, self.spec, [self.rows(0), self.columns(1)], self.scalars)

    def total(self, part: ir.Value | None = None) -> ir.Value:
        """The tile's sums, times scales that are the same along them; of one ``part`` of them where they are split."""
        roles = self.roles
        zero = self.b.constant(0, roles.accumulator, (self.tiling.bm, self.tiling.bn))
        low, high = self._steps(part)
        total, *sums = self.b.loop(low, high, 1, [zero, *self.missing.start()], self._step)
        points = self.size(flat_size(self.spec, (*roles.outer_sums, *roles.sums)))
        total = self.missing.added(total, sums, points)
        for factor in (roles.left, roles.right):
            if factor.codes is not None and not factor.by_steps:
                total = self._scaled(factor, self.frame(), total)
        return total

    def finish(self, total: ir.Value, frame: Frame | None = None) -> None:
        """Store what the epilogue makes of the sums, of the tile or of what ``frame`` is of it."""
        body = self.body({self.roles.contract: total}, frame)
        for i, instr in enumerate(self.spec.body):
            if instr.op == "store":
                body.store(instr)
            elif instr.op == "check":
                body.check(i)

    # -- factors by descriptors ---------------------------------------------------------------------------------------
    def _matrices(self) -> list[tuple[Described, ir.Value]]:
        """Of both factors, where the tiling has descriptors."""
        found = both_described(self.roles) if self.tiling.descriptors else None
        return [] if found is None else [(one, self._matrix(one)) for one in found]

    def _matrix(self, one: Described) -> ir.Value:
        b = self.b
        base = self.given.operands[one.operand]
        if one.start.terms:
            base = b.pointers(base, evaluated(b, one.start, self.scalars, "i64"))
        sizes = [self.size(self.spec.dims[dim].size) for dim in (one.outer, one.inner)]
        block = (self._side(one.outer), self._side(one.inner))
        return b.described(base, sizes, one.stride, block)

    def _side(self, dim: int) -> int:
        tiling, roles = self.tiling, self.roles
        return tiling.bm if dim in roles.rows else tiling.bn if dim in roles.columns else tiling.bk

    def _copied(self, one: Described, matrix: ir.Value, sums: ir.Value, side: int) -> ir.Value:
        """A factor's tile from ``sums`` on; the left one is side 0."""
        along = one.inner in self.roles.sums
        own = self.row_start if side == 0 else self.column_start
        tile = self.b.described_load(matrix, (own, sums) if along else (sums, own))
        return tile if along == (side == 0) else self.b.transposed(tile)

    # -- which tile ---------------------------------------------------------------------------------------------------
    def _place(self, program: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value, ir.Value]:
        """Part of the sum, point of the batch, and row and column block of a program; blocks in groups of rows, for L2."""
        b, roles, tiling = self.b, self.roles, self.tiling
        rows = self.size(blocks(flat_size(self.spec, roles.rows), tiling.bm))
        columns = self.size(blocks(flat_size(self.spec, roles.columns), tiling.bn))
        tiles = b.op("arith.muli", rows, columns)
        of = tiles if self.share is None else b.constant(self.share.count, "i32")
        tile, rest = b.op("arith.remsi", program, of), b.op("arith.divsi", program, of)
        if self.share is not None:
            tile = b.op("arith.addi", tile, b.constant(self.share.first, "i32"))
        count = self.size(product(self.spec.dims[i].size for i in roles.batch))
        batch, part = b.op("arith.remsi", rest, count), b.op("arith.divsi", rest, count)
        group = b.constant(tiling.group, "i32")
        of_group = b.op("arith.muli", columns, group)
        first = b.op("arith.muli", b.op("arith.divsi", tile, of_group), group)
        height = b.op("arith.minsi", b.op("arith.subi", rows, first), group)
        inside = b.op("arith.remsi", tile, of_group)
        row = b.op("arith.addi", first, b.op("arith.remsi", inside, height))
        return part, batch, row, b.op("arith.divsi", inside, height)

    def _steps(self, part: ir.Value | None) -> tuple[ir.Value, ir.Value]:
        """The steps along the sum that are this program's."""
        b, split = self.b, self.parts
        steps = self.size(self._inner_steps() * flat_size(self.spec, self.roles.outer_sums))
        if part is None or split == 1:
            return b.constant(0, "i32"), steps
        each = b.op("arith.divsi", b.op("arith.addi", steps, b.constant(split - 1, "i32")), b.constant(split, "i32"))
        low = b.op("arith.muli", part, each)
        return low, b.op("arith.minsi", b.op("arith.addi", low, each), steps)

    def _inner_steps(self) -> Expr:
        return blocks(flat_size(self.spec, self.roles.sums), self.tiling.bk)

    # -- axes of tiles ------------------------------------------------------------------------------------------------
    def rows(self, axis: int) -> Axis:
        return self._axis(self.roles.rows, self.row_start, self.tiling.bm, axis)

    def columns(self, axis: int) -> Axis:
        return self._axis(self.roles.columns, self.column_start, self.tiling.bn, axis)

    def sums(self, start: ir.Value, axis: int) -> Axis:
        """Those of the step that begins at ``start``."""
        return self._axis(self.roles.sums, start, self.tiling.bk, axis, moves=True)

    def _axis(self, dims: tuple[int, ...], start: ir.Value, block: int, axis: int, *, moves: bool = False) -> Axis:
        b = self.b
        size, local = axis_size(self.spec, dims), b.range(block, axis, 2)
        index = b.op("arith.addi", start, local)
        step = Step(start, local, block) if moves and len(dims) == 1 else None
        whole = size.constant is not None and size.constant % block == 0
        end = None if whole else self.size(size)
        pairs = paired(b, dims[0], start, block, axis, 2, end) if len(dims) == 1 else None
        if end is None:
            return Axis(dims, index, None, step, pairs)
        # What is left of the sum, against numbers that do not change: one comparison of a small tile each step.
        left = b.op("arith.subi", end, start)
        return Axis(dims, index, b.compare("arith.cmpi", "slt", local, left), step, pairs)

    # -- the sum ------------------------------------------------------------------------------------------------------
    def _step(self, number: ir.Value, carried: Sequence[ir.Value]) -> list[ir.Value]:
        b, roles, tiling = self.b, self.roles, self.tiling
        scalars, block = dict(self.scalars), number
        if roles.outer_sums:
            inner = self.size(self._inner_steps())
            outer, block = b.op("arith.divsi", number, inner), b.op("arith.remsi", number, inner)
            scalars.update(unflattened(b, self.spec, self.given.symbols, roles.outer_sums, outer))
        start = b.op("arith.muli", block, b.constant(tiling.bk, "i32"))
        if self.matrices:
            a, c = (self._copied(*each, start, side) for side, each in enumerate(self.matrices))
            return [b.dot(a, c, carried[0])]
        left = Frame(b, self.spec, [self.rows(0), self.sums(start, 1)], scalars)
        right = Frame(b, self.spec, [self.sums(start, 0), self.columns(1)], scalars)
        a = self._factor(roles.left, left, (tiling.bm, tiling.bk), left.axes[1])
        c = self._factor(roles.right, right, (tiling.bk, tiling.bn), right.axes[0])
        sides = ((roles.left, left, c, 0), (roles.right, right, a, 1))
        by_steps = roles.left.by_steps or roles.right.by_steps
        part = b.constant(0, roles.accumulator, (tiling.bm, tiling.bn)) if by_steps else carried[0]
        for x in self._pieces(roles.left, a):
            for y in self._pieces(roles.right, c):
                part = b.dot(x, y, part, tf32=self.target.rounds(self.spec))
        for factor, frame, other, axis in sides:
            if factor.by_steps:
                part = self._corrected(factor, frame, part, other, axis)
        return [b.op("arith.addf", carried[0], part) if by_steps else part, *self.missing.step(a, c, carried[1:])]

    def _pieces(self, factor: Factor, tile: ir.Value) -> list[ir.Value]:
        """Tiles of ``factor.dtype`` whose sum is ``tile``, the smallest numbers first."""
        b, found = self.b, list[ir.Value]()
        for last in range(factor.pieces - 1, -1, -1):
            piece = tile if dtype_of(tile) == factor.dtype else b.op("arith.truncf", tile, dtype=factor.dtype)
            found.append(piece)
            if last:
                tile = b.op("arith.subf", tile, b.op("arith.extf", piece, dtype="f32"))
        return found[::-1]

    def right(self, start: ir.Value) -> ir.Value:
        """The right factor's tile at ``start`` along the sum, of a product whose sum has one dim."""
        frame = Frame(self.b, self.spec, [self.sums(start, 0), self.columns(1)], self.scalars)
        return self._factor(self.roles.right, frame, (self.tiling.bk, self.tiling.bn), frame.axes[0])

    def _corrected(self, factor: Factor, frame: Frame, part: ir.Value, other: ir.Value, axis: int) -> ir.Value:
        """A block's product of codes less their zero points, times their scales. ``axis``: that of ``other`` along the sum."""
        b, codes = self.b, factor.codes
        if codes is not None and codes.zero is not None:
            wide = b.op("arith.extf", other, dtype="f32")
            (sums,) = b.reduce([wide], axis, lambda x, y: [b.op("arith.addf", x[0], y[0])])
            zero = self.body({}, frame).value(codes.zero)
            part = b.op("arith.subf", part, b.op("arith.mulf", sums, zero))
        return self._scaled(factor, frame, part)

    def _scaled(self, factor: Factor, frame: Frame, total: ir.Value) -> ir.Value:
        if factor.codes is None or factor.codes.scale is None:
            return total
        return self.b.op("arith.mulf", total, self.body({}, frame).value(factor.codes.scale))

    def _factor(self, factor: Factor, frame: Frame, shape: tuple[int, int], sums: Axis) -> ir.Value:
        """A factor on its tile; zero where the sum is over: loads along it are masked, what is computed from them, or does not vary along
        it, is not.
        """
        body = self.body(self.left_values if factor is self.roles.left else {}, frame)
        value = body.value(factor.value)
        if factor.unsigned:
            value = self.b.op("arith.xori", value, self.b.constant(-128, "i8"))
        elif dtype_of(value) != factor.dtype and factor.pieces == 1:
            value = body.ops.cast("arith.truncf", value, factor.dtype)
        instr = self.spec.body[factor.value]
        axis = shape_of(sums.index).index(self.tiling.bk)
        along = len(shape_of(value)) == 2 and shape_of(value)[axis] > 1
        value = self.b.spread(value, shape)
        loaded = instr.op == "load" and not instr.args and factor.value not in self.left_values
        if sums.mask is None or (along and loaded and not factor.unsigned):
            return value
        return self.b.select(sums.mask, value, self.b.constant(0, dtype_of(value)))

    def body(self, known: dict[int, ir.Value], frame: Frame | None = None) -> Body:
        """Values of the spec's instructions on a tile, by default `frame`, of which some are ``known``."""
        frame = self.frame() if frame is None else frame
        return Body(self.b, self.spec, frame, self.given.operands, self.given.error, known)

    def _store_part(self, frame: Frame, part: ir.Value, batch: ir.Value, total: ir.Value) -> None:
        """The tile into scratch memory, [part][batch][row][column]."""
        b, roles = self.b, self.roles
        rows, columns = (flat_size(self.spec, dims) for dims in (roles.rows, roles.columns))
        count = rows * columns * flat_size(self.spec, roles.batch) * self.tiling.split
        dtype = "i32" if (count.constant or MOST_I32 + 1) <= MOST_I32 else "i64"
        places = {**self.given.symbols, "p": part, "b": batch, "m": frame.axes[0].index, "n": frame.axes[1].index}
        address = ((var("p") * flat_size(self.spec, roles.batch) + var("b")) * rows + var("m")) * columns + var("n")
        pointers = b.pointers(self.given.scratch, evaluated(b, address, places, dtype))
        b.store(pointers, total, frame.mask((self.tiling.bm, self.tiling.bn), b))
