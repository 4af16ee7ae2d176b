"""What follows the sum: the rest of the body, on the accumulators of a register tile, then its stores."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from effc.compiler.codegen.cpu.body import Body, Scope
from effc.compiler.codegen.cpu.contraction.roles import Nest
from effc.compiler.codegen.cpu.text import Builder, Value, split_type


class Epilogue:
    """Writes the instructions after ``contract``. What depends on the column but not on the row (a bias) is read once a tile.

    ``within``: the dims that vary within a tile beside the column; the row unless told otherwise. ``given``: the instruction whose values
    are handed in, the sum unless told otherwise; there is then nothing that a tile's rows share.
    """

    def __init__(
        self, b: Builder, nest: Nest, body: Body, within: Collection[int] | None = None, given: int | None = None
    ) -> None:
        self.b, self.nest, self.body = b, nest, body
        rows = () if nest.row is None else (nest.row,)
        self._within = {f"d{i}" for i in (rows if within is None else within)}
        self._given = nest.contract if given is None else given
        self._effects = [i for i, instr in enumerate(nest.spec.body) if instr.op in ("store", "check")]
        self._shared = self._column_only() if given is None else []

    def write(
        self,
        outer: Mapping[str, Value],
        rows: Sequence[Value],
        columns: Sequence[Value],
        masks: Sequence[Value] | None,
        sums: Sequence[Sequence[Value]],
    ) -> None:
        """``rows``: the row index of each tile row; ``columns``: the first column of each vector; ``sums[row][vector]``."""
        nest, root = self.nest, Scope(dims=dict(outer))
        if nest.column is None:
            for row, (total,) in zip(rows, sums, strict=True):
                self.finish(root.block(self._named(nest.row, row)), total)
            return
        shared = self.shared(root, columns, masks, split_type(sums[0][0].type)[0])
        for row, totals in zip(rows, sums, strict=True):
            self.row(root, row, columns, masks, shared, totals)

    def shared(
        self, root: Scope, columns: Sequence[Value], masks: Sequence[Value] | None, lanes: int
    ) -> list[dict[int, Value]]:
        """What all rows share, at each vector of ``lanes`` columns."""
        name = f"d{self.nest.column}"
        return [
            self.columns(root.lanes_of(name, column, lanes, masks[j] if masks else None))
            for j, column in enumerate(columns)
        ]

    def row(
        self,
        root: Scope,
        row: Value,
        columns: Sequence[Value],
        masks: Sequence[Value] | None,
        shared: Sequence[dict[int, Value]],
        totals: Sequence[Value],
    ) -> None:
        """All that follows the sums of one row."""
        name, block = f"d{self.nest.column}", root.block(self._named(self.nest.row, row))
        for j, (column, total) in enumerate(zip(columns, totals, strict=True)):
            scope = block.lanes_of(name, column, split_type(total.type)[0], masks[j] if masks else None)
            scope.values.update(shared[j])
            self.finish(scope, total)

    def columns(self, scope: Scope) -> dict[int, Value]:
        """The values that all of a tile's rows share, at the columns of a lane scope."""
        for i in self._shared:
            self.body.value(i, scope)
        return scope.values

    def finish(self, scope: Scope, total: Value) -> None:
        """All that follows the sum, at one lane scope whose rows' values are ``total``."""
        scope.values[self._given] = total
        for i in self._effects:
            self.body.perform(i, scope)

    def _named(self, dim: int | None, value: Value) -> dict[str, Value]:
        return {} if dim is None else {f"d{dim}": value}

    def _column_only(self) -> list[int]:
        """Instructions outside the sum that vary with the column and not with the row, in order."""
        nest, body = self.nest, self.nest.spec.body
        needed = set(range(len(body)))
        for side in (nest.left, nest.right):
            needed -= side.inside
        after: set[int] = set()
        for i, instr in enumerate(body):
            if i == nest.contract or any(a in after for a in instr.args):
                after.add(i)
        return [
            i
            for i in sorted(needed - after)
            if f"d{nest.column}" in self.body.depends[i]
            and not self.body.depends[i] & self._within
            and body[i].op not in ("store", "check")
        ]
