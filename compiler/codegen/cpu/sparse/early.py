"""What follows a sum and is of its column alone (a bias, ReLU, a clamp), done while lanes are rows: before sums are transposed.

On Zen 4 shuffles, additions and maxima share units, which a transpose keeps busy; they idle while sums are made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from effc.compiler.codegen.cpu.body import Body, Scope
from effc.compiler.codegen.cpu.contraction.roles import Nest
from effc.compiler.codegen.cpu.text import Builder, Value, split_type


@dataclass(frozen=True)
class Early:
    """``value``: the instruction whose values the only store writes."""

    b: Builder
    nest: Nest
    body: Body
    value: int

    @staticmethod
    def of(b: Builder, nest: Nest, body: Body) -> Early | None:
        """None where nothing follows the sums, or where what follows reads more than values of the column."""
        instrs, column = nest.spec.body, {f"d{nest.column}"}
        effects = [i for i in instrs if i.op in ("store", "check")]
        if len(effects) != 1 or len(effects[0].args) != 1 or instrs[effects[0].args[0]].dtype != "f32":
            return None
        (value,) = effects[0].args
        follows = set[int]()
        for i in range(nest.contract + 1, len(instrs)):
            if any(a == nest.contract or a in follows for a in instrs[i].args):
                follows.add(i)
        beside = {a for i in follows for a in instrs[i].args} - follows - {nest.contract}
        if value not in follows or any(instrs[i].op == "load" for i in follows):
            return None
        return Early(b, nest, body, value) if all(body.depends[i] <= column for i in beside) else None

    def apply(self, column: Value, totals: Sequence[Value]) -> list[Value]:
        """What the store writes in the place of ``totals``, vectors of rows of a column."""
        place = Scope().block({f"d{self.nest.column}": column})
        found = []
        for total in totals:
            scope = place.lanes_of(f"d{self.nest.row}", self.b.index(0), split_type(total.type)[0])
            scope.values[self.nest.contract] = total
            found.append(self.body.vector(self.value, scope))
        return found
