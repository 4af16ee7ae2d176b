"""The numbers that fix a kernel's form, read from its schedule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from effc.compiler.codegen.cpu.contraction.form import filled_to, form, lanes_of, packed_group
from effc.compiler.codegen.cpu.contraction.roles import Nest
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.expr import Expr, as_expr, floordiv, product
from effc.compiler.ir.spec import KernelSpec, Schedule


@dataclass(frozen=True)
class Shape:
    """``mr`` x ``nr``: the register tile; ``unroll``: steps of K in a loop's body; ``rows_outside``: whether row tiles are the outer
    loop, not panels; ``touch``: whether the epilogue's lines are fetched before the sums; ``lanes``: accumulators a register holds;
    ``group``: neighbours of K that lie together in the packed or turned factor (2 in bf16, 4 bytes); ``dot``: they are summed together;
    ``filled``: to a multiple of how many elements the innermost sum of a packed factor is filled with zeros; ``words``: a group's elements
    are the low-bit codes of one 32-bit word.
    """

    spec: KernelSpec
    mr: int
    nr: int
    unroll: int
    rows_outside: bool
    touch: bool
    lanes: int
    group: int
    dot: bool
    filled: int
    words: bool = False

    @staticmethod
    def of(spec: KernelSpec, nest: Nest, schedule: Schedule, target: Target) -> Shape:
        """ValueError where the schedule does not fit the target."""
        lanes = lanes_of(nest, target)
        nr = int(schedule["nr"])
        if nr % lanes:
            raise ValueError(f"nr = {nr} is not a multiple of the {lanes} lanes of {target.name}")
        low = all(nest.spec.operands[side.operand].dtype == "bf16" for side in (nest.left, nest.right))
        dot = low and target.sums_pairs and lanes == 16
        if nest.right.packed:
            group = packed_group(nest)
        else:
            turned = dot and form(nest, target) == "turned"
            group = 2 if turned and nest.stride(nest.right.load, nest.reduction[-1]).constant == 1 else 1
        words = nest.right.packed and nest.right.format is not None
        dot = (dot and group == 2) or (group == 4 and not words)
        rows_outside, touch = schedule["order"] == "rows", bool(schedule["touch"])
        mr, unroll = int(schedule["mr"]), int(schedule["unroll"])
        filled = filled_to(nest, target) if nest.right.packed else group
        return Shape(spec, mr, nr, unroll, rows_outside, touch, lanes, group, dot, filled, words)

    @property
    def together(self) -> int:
        """Elements in memory of a group of the right factor."""
        return 1 if self.words else self.group

    @property
    def vectors(self) -> int:
        return self.nr // self.lanes

    @property
    def cycles_per_step(self) -> int:
        """Of a group where it is summed together: a multiply-add a vector and cycle; a panel read from memory gives about 8 bytes a
        cycle, a vector in 4 to 8.
        """
        return self.vectors * max(self.mr, 4)

    def steps(self, points: Expr) -> Expr:
        """Of a sum over so many ``points``, as ``cycles_per_step`` counts them."""
        return floordiv(points + (self.group - 1), as_expr(self.group)) if self.dot else points

    def panel_elements(self, sizes: Sequence[Expr]) -> Expr:
        """Elements of one packed panel: the innermost sum is filled up."""
        if not sizes:
            return as_expr(self.nr * self._filled_in_memory)
        return product(sizes[:-1]) * self.filled_size(sizes[-1]) * self.nr

    def filled_size(self, size: Expr) -> Expr:
        """Elements in memory of the innermost sum, those filled in included."""
        return floordiv(size + (self.filled - 1), as_expr(self.filled)) * self._filled_in_memory

    @property
    def _filled_in_memory(self) -> int:
        return self.filled // self.group * self.together
