"""Factors that the hardware copies by a descriptor of a matrix (Hopper's TMA): no addresses and masks in registers, zeros outside of it."""

from __future__ import annotations

from dataclasses import dataclass

from effc.compiler.codegen.gpu.contraction.roles import Factor, Roles
from effc.compiler.ir.expr import Expr, var
from effc.compiler.ir.spec import ITEM_SIZE

#: Bytes to which a matrix and its rows must be aligned (CUDA driver API, ``cuTensorMapEncodeTiled``), and the largest side of a tile.
_ALIGNED, MOST_SIDE = 16, 256
_DTYPES = frozenset({"f16", "bf16"})


@dataclass(frozen=True)
class Described:
    """A factor as a matrix of which rows lie along dim ``outer``, ``stride`` elements from each other, and neighbours along ``inner``;
    it begins ``start`` elements from the base of ``operand``, which depends on the batch alone.
    """

    operand: int
    outer: int
    inner: int
    stride: int
    start: Expr


def both_described(roles: Roles) -> tuple[Described, Described] | None:
    """Both factors of ``roles``; None: one of them is computed, or lies so that no descriptor says it."""
    left, right = _described(roles, roles.left, roles.rows), _described(roles, roles.right, roles.columns)
    return (left, right) if left is not None and right is not None else None


def _described(roles: Roles, factor: Factor, own: tuple[int, ...]) -> Described | None:
    instr = roles.spec.body[factor.value]
    if instr.op != "load" or instr.args or factor.dtype not in _DTYPES or instr.dtype != factor.dtype:
        return None
    if len(own) != 1 or len(roles.sums) != 1 or roles.outer_sums:
        return None
    address, each = instr["address"], _ALIGNED // ITEM_SIZE[factor.dtype]
    steps = {}
    for dim in (*own, *roles.sums):
        step = address.coefficient(f"d{dim}")
        if step is None or step.constant is None:
            return None
        steps[dim] = step.constant
        address = address - var(f"d{dim}") * step
    inner = next((dim for dim, step in steps.items() if step == 1), None)
    outer = next((dim for dim in steps if dim != inner), None)
    if inner is None or outer is None or steps[outer] <= 0 or steps[outer] % each:
        return None
    plain = not any(name[0] == "v" for name in address.variables())
    if not plain or any(c % each for _, c in address.terms):
        return None
    return Described(instr["operand"], outer, inner, steps[outer], address)
