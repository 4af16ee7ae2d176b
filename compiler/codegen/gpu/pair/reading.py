"""A ``block`` of two contractions, read: which tile of the first one's results is a factor of the second."""

from __future__ import annotations

from dataclasses import dataclass

from effc.compiler.codegen.gpu.body import flat_size
from effc.compiler.codegen.gpu.contraction.roles import Roles, find, needed
from effc.compiler.ir.expr import Expr, var
from effc.compiler.ir.spec import Instr, KernelSpec


@dataclass(frozen=True)
class Pair:
    """``first`` makes rows of ``hidden`` elements, each the value ``stored`` of its body; ``read``: the load of ``second`` that reads
    these, for its left factor, whose sum runs over them. Both have the same rows.
    """

    first: Roles
    second: Roles
    stored: int
    read: int
    hidden: int

    @property
    def rows(self) -> Expr:
        return flat_size(self.first.spec, self.first.rows)

    @property
    def columns(self) -> Expr:
        return flat_size(self.second.spec, self.second.columns)


def read_pair(spec: KernelSpec) -> Pair | str:
    """The pair, or the reason why ``spec``, of ``stages``, is no kernel of two products."""
    if len(spec.stages) != 2 or any(stage.template != "contraction" for stage in spec.stages):
        return "it is not of two products"
    if any(instr.op == "decode" for stage in spec.stages for instr in stage.body):
        return "its codes of few bits lie two a byte"
    first, second = (find(stage) for stage in spec.stages)
    if isinstance(first, str):
        return first
    if isinstance(second, str):
        return second
    if first.batch or second.batch or second.outer_sums or len(second.sums) != 1 or len(first.columns) != 1:
        return "what lies between the products is no matrix"
    stores = [instr for instr in first.spec.body if instr.op == "store"]
    if len(stores) != 1 or len(stores[0].args) != 1:
        return "the first product stores several things, or a part of its results"
    (store,) = stores
    body = second.spec.body
    loads = [i for i, instr in enumerate(body) if instr.op == "load" and instr["operand"] == store["operand"]]
    if len(loads) != 1 or body[loads[0]].args:
        return "the second product reads the first one's results at several places, or in part"
    if loads[0] not in needed(second.spec, [second.left.value]) or loads[0] in needed(
        second.spec, [second.right.value]
    ):
        return "the first product's results are not the left factor of the second"
    if any(f.codes is not None or f.dtype not in ("f32", "bf16", "f16") for f in (second.left, second.right)):
        return "the second product is not of floats alone"
    hidden = flat_size(second.spec, second.sums).constant
    if hidden is None or hidden != flat_size(first.spec, first.columns).constant:
        return "what lies between the products has no known size"
    if _places(first, store, first.columns) != _places(second, body[loads[0]], second.sums):
        return "the second product reads other elements than the first one stores at a place"
    return Pair(first, second, store.args[0], loads[0], hidden)


def _places(roles: Roles, instr: Instr, columns: tuple[int, ...]) -> tuple[Expr, tuple[Expr, ...]]:
    """The address of ``instr`` over rows and the one column, by names that both stages share; and the rows' sizes."""
    names: dict[str, Expr | int] = {f"d{dim}": var(f"row{i}") for i, dim in enumerate(roles.rows)}
    names[f"d{columns[0]}"] = var("column")
    return instr["address"].substitute(names), tuple(roles.spec.dims[i].size for i in roles.rows)
