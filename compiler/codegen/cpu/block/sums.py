"""A last stage that sums over channels which come in slices: the sums of each slice are added to those before, in the result's place.

Before → after, of 576 channels in 9 slices, d0 (`slices`)::

    d0: 9, d1: 112, d2: 112, d3: 96 | d4: 64    contract, add b[d3], store z[10752*d1 + 96*d2 + d3]

    the first slice       contract, store z
    those between         contract, add z, store z
    the last one          contract, add z, add b[d3], store z

A thread takes its lines through all slices, one after the other, so that no other one adds to its sums, and they are added in their order.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from effc.compiler.codegen.cpu.contraction.packing import Packing
from effc.compiler.ir.expr import Expr
from effc.compiler.ir.spec import Instr, KernelSpec


@dataclass(frozen=True)
class Sums:
    """What is done for the ``first`` slice of the last stage, for each one that is ``between``, and for the ``last``."""

    first: KernelSpec
    between: KernelSpec
    last: KernelSpec


def summed_dim(stage: KernelSpec, hidden: Collection[int]) -> int | None:
    """The dim of a product that is all it sums over: the channels of what it loads that is ``hidden``. None where there is no such one, or
    its sums cannot lie in the place of its result, in float32.
    """
    reduced = [i for i, d in enumerate(stage.dims) if d.kind == "reduction"]
    stores = [i for i in stage.body if i.op == "store"]
    sums = [i for i in stage.body if i.op == "contract"]
    if len(reduced) != 1 or len(stores) != 1 or len(sums) != 1:
        return None
    (dim,), (store,) = reduced, stores
    size, result = stage.dims[dim].size.constant, stage.operands[store["operand"]]
    loads = [i for i in stage.body if i.op == "load"]
    if size is None or sums[0].dtype != "f32" or result.dtype != "f32" or result.role != "write":
        return None
    if any(i["operand"] == store["operand"] for i in loads):
        return None
    asked = [i["address"] for i in loads if i["operand"] in hidden]
    return dim if asked and all(walks(address, dim, size) for address in asked) else None


def sums_of(stage: KernelSpec) -> Sums | None:
    """The steps of a stage of which slices, its first dim, are added up; None where it stores each."""
    (store,) = (i for i in stage.body if i.op == "store")
    if stage.template != "contraction" or "d0" in store["address"].variables():
        return None
    at = next(i for i, instr in enumerate(stage.body) if instr.op == "contract")
    before = stage.body[: at + 1]
    so_far = replace(store, op="load", args=(), dtype="f32")
    added = (*before, so_far, Instr("arith.addf", (at, at + 1), "f32"))
    rest = tuple(replace(i, args=tuple(a + 2 if a >= at else a for a in i.args)) for i in stage.body[at + 1 :])
    return Sums(
        replace(stage, body=(*before, replace(store, args=(at,)))),
        replace(stage, body=(*added, replace(store, args=(at + 2,)))),
        replace(stage, body=(*added, *rest)),
    )


def packed_by_slices(packed: Packing, slices: int) -> Packing:
    """The factor of a stage that sums over slices, these one behind the other: each as the factor of a product of its own."""
    known = dict(packed.attributes)
    *columns, summed = known["sizes"]
    each = summed // slices
    cut = {
        "batch": 1,
        "sizes": (slices, *columns, each),
        "strides": (each * known["strides"][-1], *known["strides"]),
    }
    return replace(packed, attributes=tuple(sorted({**known, **cut}.items())))


def walks(address: Expr, dim: int, size: int) -> bool:
    """Whether an access is to channel ``dim`` of what has ``size`` of them, places ``size`` apart."""
    start = address.substitute(dict.fromkeys(address.variables(), 0)).constant
    others = (factor_of(address, name) for name in address.variables() if name != f"d{dim}")
    return (
        factor_of(address, f"d{dim}") == 1
        and start is not None
        and start % size == 0
        and all(f is not None and f % size == 0 for f in others)
    )


def factor_of(address: Expr, name: str) -> int | None:
    """The constant by which ``address`` grows with a variable; None where there is none."""
    found = address.coefficient(name)
    return None if found is None else found.constant
