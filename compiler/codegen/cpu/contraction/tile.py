"""The register tile: ``rows`` x ``vectors`` accumulators held in registers.

Every step loads the columns' vectors once and, row by row, one scalar that is broadcast (or folded into the multiply-add by LLVM).
The innermost dimension of K is unrolled; sums always run over K in the order of its dimensions, so that results do not depend
on how the work is divided. A long sum is one of partial sums over blocks of K (`chains`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from effc.compiler.codegen.cpu.addresses import scalar_expr
from effc.compiler.codegen.cpu.contraction.ahead import Ahead
from effc.compiler.codegen.cpu.contraction.borders import Outside
from effc.compiler.codegen.cpu.contraction.chains import block, chain_length
from effc.compiler.codegen.cpu.contraction.factors import Step
from effc.compiler.codegen.cpu.text import Builder, Value
from effc.compiler.ir.expr import Expr, const, product, var

Accumulators = list[Value]

#: Name of the size of the last block, beside the spec's symbols.
_REST = "rest"


@dataclass(frozen=True)
class Tile:
    """``left``: a pointer a row, or one pointer where ``row_stride`` (elements) tells the rows apart; ``right``: that of the first column.

    ``left_strides``/``right_strides``: elements between neighbours of each K dimension, in memory (a packed right factor: of a
    group). ``sizes``: of the K dimensions, outermost first. ``masks``: of each column vector, None where all lanes are columns.
    ``offsets``: of the lanes of columns that are not contiguous. ``ahead``: what is fetched meanwhile. ``outside``: (row, index of the
    innermost dimension) left out; ``clamped``: first index and end of K dimensions, by depth, that do not run over all of their size.
    """

    step: Step
    rows: int
    vectors: int
    row_stride: int | None
    sizes: Sequence[Expr]
    left_strides: Sequence[Expr]
    right_strides: Sequence[Expr]
    symbols: dict[str, Value]
    unroll: int
    masks: Sequence[Value] | None
    offsets: Value | None
    vector_step: Value
    ahead: Ahead | None = None
    outside: Outside = frozenset()
    clamped: Mapping[int, tuple[Value, Value]] = field(default_factory=dict)

    @property
    def b(self) -> Builder:
        return self.step.b

    def run(self, left: list[Value], right: Value) -> list[list[Value]]:
        """Sums over K, ``[row][vector]``."""
        flat = self._reduce(0, left, right, self._zeros())
        return [flat[i * self.vectors : (i + 1) * self.vectors] for i in range(self.rows)]

    def add(
        self, left: list[Value], right: Value, total: list[Value], scales: Sequence[Value | None] | None = None
    ) -> list[Value]:
        """``total`` (flat) plus the sums over a K of at most ``chain_length``, times ``scales`` of the column vectors."""
        if not self.step.rounds and scales is None:
            return self._sum(0, left, right, total)
        return self._plus(total, self._sum(0, left, right, self._zeros()), scales)

    def _zeros(self) -> Accumulators:
        return [self.step.zero()] * (self.rows * self.vectors)

    def _reduce(self, depth: int, left: list[Value], right: Value, total: Accumulators) -> Accumulators:
        if depth == len(self.sizes):
            return self._step(left, right, total, points=1)
        if self.step.rounds and (length := block(self.sizes[depth:], chain_length(self.step.nest.right.packed))):
            if depth == len(self.sizes) - 1:
                length = -(-length // self.step.group) * self.step.group
            return self._blocks(depth, length, left, right, total)
        return self._sum(depth, left, right, total)

    def _sum(self, depth: int, left: list[Value], right: Value, total: Accumulators) -> Accumulators:
        """One chain over a dimension, and blocks or chains over those inside it."""
        if depth == len(self.sizes) - 1:
            return self._innermost(left, right, total)
        b = self.b
        low, high = self.clamped.get(depth, (b.index(0), self._value(self.sizes[depth])))
        with b.loop(low, high, carried=total) as loop:
            part = self._further(depth, loop.index)
            inside = part._reduce(depth + 1, *self._advance(depth, left, right, loop.index), loop.carried)
            loop.yield_(inside)
        return loop.results

    def _blocks(self, depth: int, length: int, left: list[Value], right: Value, total: Accumulators) -> Accumulators:
        """``length`` points of the dimension at a time, each block summed from zero and then added."""
        b, size = self.b, self._value(self.sizes[depth])
        whole = b.mul(b.div(size, length), length)
        with b.loop(b.index(0), whole, length, total) as loop:
            part = self._further(depth, loop.index)
            piece = replace(part, sizes=[*self.sizes[:depth], const(length), *self.sizes[depth + 1 :]])
            partial = piece._sum(depth, *self._advance(depth, left, right, loop.index), self._zeros())
            loop.yield_(self._plus(loop.carried, partial))
        rest = b.sub(size, whole)
        if (known := b.integer_of(rest)) == 0:
            return loop.results
        expr = var(_REST) if known is None else const(known)
        piece = replace(
            self,
            sizes=[*self.sizes[:depth], expr, *self.sizes[depth + 1 :]],
            symbols={**self.symbols, _REST: rest},
        )
        partial = piece._sum(depth, *self._advance(depth, left, right, whole), self._zeros())
        return self._plus(loop.results, partial)

    def _plus(
        self, total: Accumulators, partial: Accumulators, scales: Sequence[Value | None] | None = None
    ) -> Accumulators:
        each = [*(scales or [None] * self.vectors)] * self.rows
        each += [None] * (len(total) - len(each))
        return [
            self.b.op("arith.addf", x, y) if s is None else self.b.op("math.fma", y, s, x)
            for x, y, s in zip(total, partial, each, strict=True)
        ]

    def _innermost(self, left: list[Value], right: Value, total: Accumulators) -> Accumulators:
        """Steps of ``group``, unrolled; then single steps; then one of what is left of K."""
        b, group, depth = self.b, self.step.group, len(self.sizes) - 1
        if depth in self.clamped:
            return self._loop(*self.clamped[depth], 1, left, right, total)
        size = self._value(self.sizes[depth])
        steps = b.div(size, group)
        known = b.integer_of(steps)
        unroll = self.unroll if known is None else unroll_of(known, self.unroll)
        whole = b.mul(b.div(steps, unroll), unroll)
        if known is None or known >= 2 * unroll:
            total = self._loop(b.index(0), whole, unroll, left, right, total)
        elif known >= unroll:
            total = self._steps(*self._advance_inner(left, right, b.index(0)), unroll, total)
        if known is None:
            total = self._loop(whole, steps, 1, left, right, total)
        elif known % unroll:
            total = self._steps(*self._advance_inner(left, right, whole), known % unroll, total)
        return self._rest(size, steps, left, right, total) if group > 1 else total

    def _loop(
        self, low: Value, high: Value, unroll: int, left: list[Value], right: Value, total: Accumulators
    ) -> Accumulators:
        with self.b.loop(low, high, unroll, carried=total) as loop:
            lefts, at = self._advance_inner(left, right, loop.index)
            if self.ahead is not None and unroll * self.step.group > 1:
                self.ahead.moved(self.b, self.b.mul(loop.index, self.step.group)).fetch(
                    self.b, unroll * self.step.group
                )
            loop.yield_(self._steps(lefts, at, unroll, loop.carried))
        return loop.results

    def _rest(self, size: Value, steps: Value, left: list[Value], right: Value, total: Accumulators) -> Accumulators:
        """The last of K that fill no group; the packed panel holds zeros beyond them."""
        b, group = self.b, self.step.group
        known = b.integer_of(size)
        if known is not None:
            points = known % group
            return self._step(*self._advance_inner(left, right, steps), total, points=points) if points else total
        assert group == 2, "the sizes of packed bytes are known"
        with b.loop(steps, b.div(b.add(size, 1), 2), carried=total) as loop:
            loop.yield_(self._step(*self._advance_inner(left, right, loop.index), loop.carried, points=1))
        return loop.results

    def _steps(self, left: list[Value], right: Value, count: int, total: Accumulators) -> Accumulators:
        b, group = self.b, self.step.group
        across, along = self._value(self.left_strides[-1]), self._value(self.right_strides[-1])
        for u in range(count):
            lefts = [self._at(p, b.mul(across, u * group), self._left_element) for p in left]
            if self._overlaps(count):
                lefts = [b.opaque(p) for p in lefts]
            out = frozenset(row for row, tap in self.outside if tap == u)
            total = self._step(lefts, self._at(right, b.mul(along, u), self._right_element), total, out)
        return total

    def _overlaps(self, count: int) -> bool:
        """Whether some of ``count`` steps read, broadcast for one row, what another step reads for another row (windows of a convolution).

        LLVM would load these once and keep them in registers that the accumulators need: on Zen 4 the 3x3 stem of MobileNetV2 ran
        at 0.45 of the peak.
        """
        across, rows = self.left_strides[-1].constant, self.row_stride
        if self.step.nest.wise or across is None or not rows:
            return False
        return any(u * across % rows == 0 for u in range(1, count))

    def _step(
        self,
        left: list[Value],
        right: Value,
        total: Accumulators,
        outside: Collection[int] = (),
        points: int | None = None,
    ) -> Accumulators:
        """One product of each row that is not ``outside``: of a group, or of its first ``points``."""
        b, step = self.b, self.step
        columns = [self._column(right, j) for j in range(self.vectors)]
        across = self._value(self.left_strides[-1]) if self.left_strides else b.index(0)
        result: Accumulators = []
        for i in range(self.rows):
            if i in outside:
                result += total[i * self.vectors : (i + 1) * self.vectors]
                continue
            pointer = self._row(left, i)
            rows: list[list[Value]] = []
            for j in range(self.vectors if step.nest.wise else 1):
                at = self._at(pointer, b.index(j * step.lanes), self._left_element)
                mask = self.masks[j] if self.masks and step.nest.wise else None
                rows.append(step.left(at, points or step.group, across, mask))
            for j, column in enumerate(columns):
                result.append(step.accumulate(total[i * self.vectors + j], rows[j % len(rows)], column))
        return result

    def _column(self, right: Value, j: int) -> list[Value]:
        b = self.b
        at = self._at(right, b.mul(self.vector_step, j), self._right_element)
        return self.step.right(at, self.masks[j] if self.masks else None, self.offsets)

    # -- pointers ---------------------------------------------------------------------------------------------------
    @property
    def _left_element(self) -> str:
        return self.step.memory(self.step.nest.left)

    @property
    def _right_element(self) -> str:
        return self.step.right_memory

    def _row(self, left: list[Value], i: int) -> Value:
        if self.row_stride is None:
            return left[i]
        return self._at(left[0], self.b.index(i * self.row_stride), self._left_element)

    def _further(self, depth: int, index: Value) -> Tile:
        """The tile of what is left from ``index`` of a dimension of K on."""
        if self.ahead is None:
            return self
        points = self.b.mul(index, self._value(product(self.sizes[depth + 1 :])))
        return replace(self, ahead=self.ahead.moved(self.b, points))

    def _advance(self, depth: int, left: list[Value], right: Value, index: Value) -> tuple[list[Value], Value]:
        b = self.b
        across = b.mul(index, self._value(self.left_strides[depth]))
        if depth == len(self.sizes) - 1:
            index = b.div(index, self.step.group)
        along = b.mul(index, self._value(self.right_strides[depth]))
        return [self._at(p, across, self._left_element) for p in left], self._at(right, along, self._right_element)

    def _advance_inner(self, left: list[Value], right: Value, index: Value) -> tuple[list[Value], Value]:
        """Pointers at group ``index`` of the innermost dimension."""
        b = self.b
        across = b.mul(b.mul(index, self.step.group), self._value(self.left_strides[-1]))
        along = b.mul(index, self._value(self.right_strides[-1]))
        return [self._at(p, across, self._left_element) for p in left], self._at(right, along, self._right_element)

    def _at(self, pointer: Value, offset: Value, element: str) -> Value:
        return self.b.element_pointer(pointer, offset, element)

    def _value(self, expr: Expr) -> Value:
        return scalar_expr(self.b, expr, self.symbols)


def unroll_of(steps: int, wanted: int) -> int:
    """Small sums unroll whole; others by the divisor nearest below twice ``wanted`` (no remainder code), else by ``wanted``."""
    if steps <= 2 * wanted:
        return max(steps, 1)
    return next((u for u in range(2 * wanted - 1, wanted - 1, -1) if steps % u == 0), wanted)
