"""The ``loops`` template: elementwise chains, gathers, copies, reductions, softmax, norms.

A program computes a tile of two axes. Without reductions, ``rows`` are all parallel dims but the contiguous one, ``columns`` that
one. With reductions, ``rows`` are all parallel dims, and ``columns`` the reduction dims: all at once where a tile holds them, so that
every operand is read once, else block by block, in as many passes as reductions follow each other. Each pass keeps a tile of partial
results and folds it behind its loop: sums are of pairs, whatever the length. What is the same for groups of columns (scales of codes)
makes the tile one of three axes, rows, groups and columns of a group, so that it is loaded once a group.

Schedule: ``rows``, ``columns`` (powers of two), ``warps``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch_mlir import ir

from effc.compiler.codegen.canonical import simplify
from effc.compiler.codegen.gpu.body import (
    Axis,
    Body,
    Combine,
    Frame,
    axis_size,
    combiner,
    flat_size,
    identity_of,
    numbered,
    paired,
)
from effc.compiler.codegen.gpu.builder import Builder
from effc.compiler.codegen.gpu.groups import by_groups
from effc.compiler.codegen.gpu.indices import evaluated
from effc.compiler.codegen.gpu.launch import Arguments, Emitted, Launch, blocks, kernel, power_of_two
from effc.compiler.codegen.gpu.ops import LOW_PRECISION, Ops, known
from effc.compiler.codegen.gpu.partial import in_parts, parts_of
from effc.compiler.codegen.gpu.target import GpuTarget
from effc.compiler.ir.errors import LoweringError
from effc.compiler.ir.expr import Expr
from effc.compiler.ir.spec import KernelSpec, Schedule

#: Elements of a tile: 8 a thread of four warps.
_TILE = 1024
#: Elements of the largest tile that holds a whole reduction.
_WHOLE = 8192
#: Neighbours that one warp should read together: 32 bytes of a sector of four bytes each, four times.
_NEIGHBOURS = 32
_CONTROL = frozenset({"load", "store", "reduce", "index", "check"})


def supports(spec: KernelSpec) -> str | None:
    """None where `emit` makes kernels of ``spec``, else the reason why it does not."""
    for i, instr in enumerate(spec.body):
        if instr.op not in _CONTROL and not known(instr.op):
            return f"{instr.op} (v{i}) has no form on the GPU"
    if len(flat_size(spec, range(len(spec.dims))).terms) == 0:
        return "no points"
    return None


@dataclass(frozen=True)
class Plan:
    """``spec`` simplified; the dims of the two axes, and the tile. ``group``: columns of the third axis, all of the last dim; 0: there is
    none.
    """

    spec: KernelSpec
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    reduces: bool
    row_block: int
    column_block: int
    warps: int
    group: int = 0

    @property
    def whole(self) -> bool:
        """Whether the columns of a tile are all there are."""
        size = flat_size(self.spec, self.columns).constant
        return size is not None and size <= self.column_block

    @property
    def outer_columns(self) -> tuple[tuple[int, ...], int]:
        """The dims of the second axis, along which loops go, and its size in a tile."""
        return (self.columns[:-1], self.column_block // self.group) if self.group else (self.columns, self.column_block)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a tile."""
        inner = (self.group,) if self.group else ()
        return (self.row_block, self.outer_columns[1], *inner)


def plan(spec: KernelSpec) -> Plan:
    """How to run ``spec``; its own schedule where it has one."""
    spec, group = by_groups(simplify(spec))
    parallel = tuple(i for i, d in enumerate(spec.dims) if d.kind == "parallel")
    summed = tuple(i for i, d in enumerate(spec.dims) if d.kind == "reduction")
    if summed:
        rows, columns = parallel, summed
        row_block, column_block = _reduction_blocks(spec, rows, columns)
    else:
        columns = parallel[-1:]
        turned = _turned(spec, parallel)
        rows = (*(i for i in parallel[:-1] if i != turned), *([] if turned is None else [turned]))
        if turned is not None:
            row_block = column_block = _NEIGHBOURS
        else:
            column_block = power_of_two(flat_size(spec, columns), 1, _TILE)
            row_block = power_of_two(flat_size(spec, rows), 1, _TILE // column_block)
    row_block = spec.schedule.get("rows", row_block)
    column_block = spec.schedule.get("columns", column_block)
    warps = spec.schedule.get("warps", max(1, min(8, row_block * column_block // 256)))
    return Plan(
        spec, rows, columns, bool(summed), row_block, max(column_block, group), 1 << (warps.bit_length() - 1), group
    )


def candidates(spec: KernelSpec) -> list[Schedule]:
    """The default first, then neighbours of its tile."""
    found = plan(spec)
    offered = [(found.row_block, found.column_block, found.warps)]
    for rows, columns in ((2, 1), (1, 2), (4, 1), (1, 4)):
        for warps in (found.warps, 2 * found.warps):
            if found.row_block * rows * found.column_block * columns <= 2 * _WHOLE and warps <= 16:
                offered.append((found.row_block * rows, found.column_block * columns, warps))
    return [Schedule((("columns", c), ("rows", r), ("warps", w))) for r, c, w in dict.fromkeys(offered)]


def emit(spec: KernelSpec, target: GpuTarget, name: str, *, aligned: bool = True, scratch: bool = False) -> Emitted:
    """One launch, or two where a reduction is cut into parts; LoweringError where `supports` says no. ``scratch``: the last operand is the
    scratch memory.
    """
    reason = supports(spec)
    if reason is not None:
        raise LoweringError(f"these loops are not supported: {reason}")
    found = plan(spec)
    parts = 1 if scratch or spec.schedule.parameters else _parts(found, simplify(spec), target)
    if parts > 1:
        each, together = in_parts(simplify(spec), parts)
        first = emit(each, target, name, aligned=aligned, scratch=True)
        second = emit(together, target, f"{name}_sum", aligned=aligned, scratch=True)
        return Emitted((*first.launches, *second.launches), each.operands[-1].size)
    text = kernel(found.spec, name, lambda b, given: Loops(b, found, given).emit(), aligned=aligned, scratch=scratch)
    grid = blocks(flat_size(found.spec, found.rows), found.row_block)
    if not found.reduces:
        grid = grid * blocks(flat_size(found.spec, found.columns), found.column_block)
    launch = Launch(name, text, grid, found.warps, 2)
    return Emitted((launch,), numbers=numbered(found.spec, found.rows, found.columns))


def _parts(found: Plan, spec: KernelSpec, target: GpuTarget) -> int:
    """`parts_of` the reduction that ``found`` plans; 1: there is none."""
    programs = blocks(flat_size(found.spec, found.rows), found.row_block).constant
    return parts_of(spec, programs, found.row_block, target.processors) if found.reduces and programs else 1


def _reduction_blocks(spec: KernelSpec, rows: Sequence[int], columns: Sequence[int]) -> tuple[int, int]:
    size, count = flat_size(spec, columns), flat_size(spec, rows)
    if _strides_of_one(spec, columns) or not _strides_of_one(spec, rows):
        column_block = power_of_two(
            size, 1, _WHOLE if size.constant is not None and size.constant <= _WHOLE else 2 * _TILE
        )
        # What lies two a byte is less than what it meets: more rows for what a tile reads of that.
        elements = _WHOLE if any(o.role == "packed" for o in spec.operands) else _TILE
        return power_of_two(count, 1, max(1, elements // column_block)), column_block
    # Neighbours in memory are rows: as many as one warp reads together, and few columns at a time.
    row_block = power_of_two(count, 1, _NEIGHBOURS)
    return row_block, power_of_two(size, 1, 2 * _TILE // row_block)


def _strides_of_one(spec: KernelSpec, dims: Sequence[int]) -> int:
    """How many loads step by one element along one of ``dims``."""
    found = 0
    for instr in spec.body:
        if instr.op == "load":
            steps = (instr["address"].coefficient(f"d{i}") for i in dims)
            found += any(s is not None and s.constant == 1 for s in steps)
    return found


def _turned(spec: KernelSpec, parallel: Sequence[int]) -> int | None:
    """A dim, not the last, along which something is read or written by neighbours: a transpose."""
    for instr in spec.body:
        if instr.op in ("load", "store"):
            for i in parallel[:-1]:
                step = instr["address"].coefficient(f"d{i}")
                if step is not None and step.constant == 1 and (spec.dims[i].size.constant or _TILE) >= _NEIGHBOURS:
                    return i
    return None


class Loops:
    """Emits the kernel of a plan, or its values on a tile."""

    def __init__(self, b: Builder, plan: Plan, given: Arguments) -> None:
        self.b, self.plan, self.spec, self.given = b, plan, plan.spec, given
        self.levels, self.rank = self.spec.levels(), len(plan.shape)
        self.parallel = sum(d.kind == "parallel" for d in self.spec.dims)
        self.passes = passes(self.spec)

    def emit(self) -> None:
        b, plan = self.b, self.plan
        program = b.program_id()
        if not plan.reduces:
            columns = self._size(blocks(flat_size(self.spec, plan.columns), plan.column_block))
            row, column = b.op("arith.divsi", program, columns), b.op("arith.remsi", program, columns)
            frame = self._frame(row, b.op("arith.muli", column, b.constant(plan.column_block, "i32")))
            self._finish(self._body(frame, {}), range(len(self.spec.body)))
            return
        outer = self._body(self._frame(program, None), {})
        self.rows = program
        if plan.whole:
            self._at_once(outer)
        else:
            for number in range(max(self.passes, default=0) + 1):
                self._pass(number, outer)
        self._finish(outer, [i for i, level in enumerate(self.levels) if level <= self.parallel])

    # -- tiles --------------------------------------------------------------------------------------------------------
    def _frame(self, row: ir.Value, column: ir.Value | None) -> Frame:
        """The tile of row block ``row`` whose columns start at ``column``; None: of one column, for what does not vary along them."""
        b, plan = self.b, self.plan
        start = b.op("arith.muli", row, b.constant(plan.row_block, "i32"))
        axes = [self._axis(plan.rows, start, plan.row_block, 0)]
        if column is None:
            axes += [Axis((), b.constant(0, "i32", (1,) * self.rank), None)] * (self.rank - 1)
        else:
            axes.append(self._axis(*_at(plan.outer_columns, column), 1))
            axes += [self._axis(plan.columns[-1:], b.constant(0, "i32"), plan.group, 2)] if plan.group else []
        return Frame(b, self.spec, axes, self.given.symbols)

    def _axis(self, dims: tuple[int, ...], start: ir.Value, block: int, axis: int) -> Axis:
        b = self.b
        size = axis_size(self.spec, dims)
        index = b.op("arith.addi", start, b.range(block, axis, self.rank))
        whole = block == 1 or (size.constant is not None and size.constant % block == 0)
        end = None if whole else self._size(size)
        pairs = paired(b, dims[0], start, block, axis, self.rank, end) if len(dims) == 1 and block > 1 else None
        if end is None:
            return Axis(dims, index, None, pairs=pairs)
        return Axis(dims, index, b.compare("arith.cmpi", "slt", index, end), pairs=pairs)

    def _size(self, e: Expr) -> ir.Value:
        return evaluated(self.b, e, self.given.symbols)

    def _body(self, frame: Frame, known: dict[int, ir.Value]) -> Body:
        return Body(self.b, self.spec, frame, self.given.operands, self.given.error, known)

    def _finish(self, body: Body, numbers: Sequence[int] | range) -> None:
        for i in numbers:
            if self.spec.body[i].op == "store":
                body.store(self.spec.body[i])
            elif self.spec.body[i].op == "check":
                body.check(i)

    # -- reductions ---------------------------------------------------------------------------------------------------
    def values_of(self, row: ir.Value) -> Body:
        """Values on a tile of all columns, of the block of rows ``row``; nothing is stored. The plan is `Plan.whole`."""
        self.rows = row
        return self._whole(self._body(self._frame(row, None), {}))

    def _at_once(self, outer: Body) -> None:
        inner = self._whole(outer)
        self._finish(inner, [i for i, level in enumerate(self.levels) if level > self.parallel])

    def _whole(self, outer: Body) -> Body:
        """Values on a tile of all columns, behind all reductions, whose results go to ``outer``."""
        inner = self._body(self._frame(self.rows, self.b.constant(0, "i32")), {})
        for i, instr in enumerate(self.spec.body):
            if instr.op == "reduce":
                self._prepare(outer, self.passes[i])
                inner.values.update(outer.values)
                outer.values[i] = self._folded(i, self._terms(i, inner))
        self._prepare(outer, len(self.spec.body))
        inner.values.update(outer.values)
        return inner

    def _pass(self, number: int, outer: Body) -> None:
        """One loop over the columns: the reductions and stores that can run once ``number`` passes are over."""
        b, plan, spec = self.b, self.plan, self.spec
        self._prepare(outer, number)
        here = [i for i, p in enumerate(self.passes) if p == number]
        reduces = [i for i in here if spec.body[i].op == "reduce"]
        effects = [i for i in here if spec.body[i].op in ("store", "check") and self.levels[i] > self.parallel]
        if not reduces and not effects:
            return
        self._refuse_overwriting(number, effects)
        starts: list[ir.Value] = []
        for i in reduces:
            starts += [b.spread(v, plan.shape) for v in self._neutral(i)]

        def step(start: ir.Value, carried: Sequence[ir.Value]) -> Sequence[ir.Value]:
            inner = self._body(self._frame(self.rows, start), dict(outer.values))
            found: list[ir.Value] = []
            rest = list(carried)
            for i in reduces:
                terms = self._terms(i, inner)
                sums, rest = rest[: len(terms)], rest[len(terms) :]
                found += self._combine(i)(sums, terms)
            self._finish(inner, effects)
            return found

        dims, block = plan.outer_columns
        ends = b.loop(b.constant(0, "i32"), self._size(flat_size(spec, dims)), block, starts, step)
        for i in reduces:
            count = len(self._neutral(i))
            outer.values[i] = self._folded(i, ends[:count])
            ends = ends[count:]

    def _prepare(self, outer: Body, number: int) -> None:
        """What does not vary along the columns, before the loop: values that need no more than ``number`` passes."""
        for i, instr in enumerate(self.spec.body):
            plain = instr.op not in ("reduce", "store", "check") and self.levels[i] <= self.parallel
            if plain and self.passes[i] <= number:
                outer.value(i)

    def _refuse_overwriting(self, number: int, effects: Sequence[int]) -> None:
        for i in effects:
            operand = self.spec.body[i].get("operand")
            later = (k for k, p in enumerate(self.passes) if p > number)
            if operand is not None and any(self._reads(k, operand) for k in later):
                raise LoweringError(f"operand {operand} is overwritten while later passes over the sum still read it")

    def _reads(self, number: int, operand: int) -> bool:
        instr = self.spec.body[number]
        if instr.op == "load" and instr["operand"] == operand:
            return True
        return any(self._reads(a, operand) for a in instr.args)

    def _compute_dtype(self, number: int) -> str:
        """Of the values that are compared or summed."""
        source = self.spec.body[self.spec.body[number].args[0]].dtype
        return "f32" if source in LOW_PRECISION else source

    def _neutral(self, number: int) -> list[ir.Value]:
        instr, b = self.spec.body[number], self.b
        found = [identity_of(b, instr["kind"], self._compute_dtype(number))]
        if len(instr.args) > 1:
            dtype = self.spec.body[instr.args[1]].dtype
            found.append(b.constant((1 << (int(dtype[1:]) - 1)) - 1, dtype))
        return found

    def _combine(self, number: int) -> Combine:
        return combiner(Ops(self.b), self.spec.body[number]["kind"], self._compute_dtype(number))

    def _terms(self, number: int, inner: Body) -> list[ir.Value]:
        """What is reduced, over the whole tile; neutral outside."""
        b, plan = self.b, self.plan
        mask = inner.frame.axes[1].mask
        found = []
        for arg, neutral in zip(self.spec.body[number].args, self._neutral(number), strict=True):
            value = inner.value(arg)
            if self.spec.body[arg].dtype in LOW_PRECISION:
                value = inner.ops.cast("arith.extf", value, "f32")
            value = b.spread(value, plan.shape)
            found.append(value if mask is None else b.select(mask, value, neutral))
        return found

    def _folded(self, number: int, tiles: Sequence[ir.Value]) -> ir.Value:
        instr = self.spec.body[number]
        for axis in range(self.rank - 1, 0, -1):
            tiles = self.b.reduce(tiles, axis, self._combine(number))
        folded = tiles[-1]
        return Ops(self.b).cast("arith.truncf", folded, instr.dtype) if instr.dtype in LOW_PRECISION else folded


def _at(axis: tuple[tuple[int, ...], int], start: ir.Value) -> tuple[tuple[int, ...], ir.Value, int]:
    return axis[0], start, axis[1]


def passes(spec: KernelSpec) -> tuple[int, ...]:
    """For each instruction how many passes over the reduction dims must be over before it can run."""
    found: list[int] = []
    for instr in spec.body:
        sources = list(instr.args)
        for _, value in instr.attributes:
            if isinstance(value, Expr):
                sources += [int(n[1:]) for n in value.variables() if n[0] == "v" and n[1:].isdigit()]
        found.append(max((found[a] + (spec.body[a].op == "reduce") for a in sources), default=0))
    return tuple(found)
