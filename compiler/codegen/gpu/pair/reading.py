"""A ``block`` of two contractions, and maybe a norm before them, read: what of the one is a factor of the next."""

from __future__ import annotations

from dataclasses import dataclass

from effc.compiler.codegen.canonical import simplify
from effc.compiler.codegen.gpu.body import flat_size
from effc.compiler.codegen.gpu.contraction.roles import Factor, Roles, find, needed
from effc.compiler.codegen.gpu.loops import supports
from effc.compiler.ir.expr import Expr, var
from effc.compiler.ir.spec import Instr, KernelSpec


@dataclass(frozen=True)
class Link:
    """``stored``: the value of one stage's body that it stores, in rows of ``length`` elements; ``read``: the load of the next stage that
    reads these, for its left factor, whose sum runs over them.
    """

    stored: int
    read: int
    length: int


@dataclass(frozen=True)
class Norm:
    """``spec``, simplified: loops that reduce rows of what ``link`` hands on to the first product."""

    spec: KernelSpec
    link: Link


@dataclass(frozen=True)
class Pair:
    """``first`` hands rows on to ``second``, which has the same ones, by ``link``; what ``first`` multiplies may come from a ``norm``."""

    first: Roles
    second: Roles
    link: Link
    norm: Norm | None = None

    @property
    def rows(self) -> Expr:
        return flat_size(self.first.spec, self.first.rows)

    @property
    def hidden(self) -> int:
        """Elements of a row between the products."""
        return self.link.length

    @property
    def columns(self) -> Expr:
        return flat_size(self.second.spec, self.second.columns)


def read_pair(spec: KernelSpec) -> Pair | str:
    """The pair, or the reason why ``spec``, of ``stages``, is no kernel of two products."""
    *before, one, other = spec.stages if len(spec.stages) in (2, 3) else (spec, spec)
    if one.template != "contraction" or other.template != "contraction" or any(s.template != "loops" for s in before):
        return "it is not of two products"
    if any(instr.op == "decode" for stage in spec.stages for instr in stage.body):
        return "its codes of few bits lie two a byte"
    first, second = find(one), find(other)
    if isinstance(first, str):
        return first
    if isinstance(second, str):
        return second
    if first.batch or second.batch or len(first.columns) != 1:
        return "what lies between the products is no matrix"
    if not (_is_floats(second.left) and _is_floats(second.right)):
        return "the second product is not of floats alone"
    link = _link(first.spec, first.rows, first.columns, second)
    if isinstance(link, str):
        return f"between the products {link}"
    norm = _norm(before[0], first) if before else None
    return f"behind the norm {norm}" if isinstance(norm, str) else Pair(first, second, link, norm)


def _is_floats(factor: Factor) -> bool:
    return factor.codes is None and factor.dtype in ("f32", "bf16", "f16")


def _norm(spec: KernelSpec, first: Roles) -> Norm | str:
    spec = simplify(spec)
    rows = tuple(i for i, d in enumerate(spec.dims) if d.kind == "parallel")
    columns = tuple(i for i, d in enumerate(spec.dims) if d.kind == "reduction")
    if supports(spec) is not None or len(columns) != 1 or not _is_floats(first.left):
        return "is something else than rows of floats"
    link = _link(spec, rows, columns, first)
    return link if isinstance(link, str) else Norm(spec, link)


def _link(spec: KernelSpec, rows: tuple[int, ...], columns: tuple[int, ...], then: Roles) -> Link | str:
    """What ``spec``, of ``rows`` and one of ``columns``, hands on to ``then``, or why it is nothing of the kind."""
    if then.outer_sums or len(then.sums) != 1:
        return "is no matrix"
    stores = [instr for instr in spec.body if instr.op == "store"]
    if len(stores) != 1 or len(stores[0].args) != 1:
        return "several things, or a part of the results, are stored"
    (store,) = stores
    body = then.spec.body
    loads = [i for i, instr in enumerate(body) if instr.op == "load" and instr["operand"] == store["operand"]]
    if len(loads) != 1 or body[loads[0]].args:
        return "results are read at several places, or in part"
    (read,) = loads
    if read not in needed(then.spec, [then.left.value]) or read in needed(then.spec, [then.right.value]):
        return "results are not the left factor"
    length = flat_size(then.spec, then.sums).constant
    if length is None or length != flat_size(spec, columns).constant:
        return "results have no known size"
    if _place(spec, store, rows, columns) != _place(then.spec, body[read], then.rows, then.sums):
        return "other elements are read than are stored at a place"
    return Link(store.args[0], read, length)


def _place(
    spec: KernelSpec, instr: Instr, rows: tuple[int, ...], columns: tuple[int, ...]
) -> tuple[Expr, tuple[Expr, ...]]:
    """The address of ``instr`` over rows and the one column, by names that both stages share; and the rows' sizes."""
    names: dict[str, Expr | int] = {f"d{dim}": var(f"row{i}") for i, dim in enumerate(rows)}
    names[f"d{columns[0]}"] = var("column")
    return instr["address"].substitute(names), tuple(spec.dims[i].size for i in rows)
