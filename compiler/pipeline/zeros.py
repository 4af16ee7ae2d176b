"""Which prepared tensors are zero wherever a parameter is: weights times the scales of a batch norm, say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from effc.compiler.ir.expr import var
from effc.compiler.ir.sparsity import Sparsity
from effc.compiler.pipeline.graph import Body, Op, Tensor
from effc.compiler.pipeline.views import permutation

#: Operations whose result is zero where their first operand is.
_KEEPING = frozenset({"arith.divf", "arith.negf", "arith.extf", "arith.truncf"})


@dataclass(frozen=True)
class Zeros:
    """``sparsity``: of a tensor whose dims lie in ``order``, the slowest first; that is its first."""

    sparsity: Sparsity
    order: tuple[int, ...]


def kept_zeros(tensor: Tensor, known: Mapping[Tensor, Sparsity]) -> Zeros | None:
    """What is known of the zeros of ``tensor``, computed element by element from tensors of which it is ``known``, or from them with their
    dims but the first exchanged. A factor that is infinite or NaN is taken for a number, as everywhere where zeros are left out.
    """
    op = tensor.producer
    if tensor in known:
        return Zeros(known[tensor], tuple(range(len(tensor.sizes))))
    if op is None:
        return None
    if op.kind == "remap":
        found, axes = kept_zeros(op.operands[0], known), permutation(op)
        if found is None or axes is None or axes[0] != 0:
            return None
        return Zeros(found.sparsity, tuple(axes.index(axis) for axis in found.order))
    if op.kind != "generic" or op.reduction_dims or op.body is None or len(op.results) != 1:
        return None
    for number in range(len(op.maps)):
        if _alike(op, number) and _vanishes(op.body, op.body.yields[0], number):
            found = kept_zeros(op.operands[number], known)
            if found is not None:
                return found
    return None


def _alike(op: Op, number: int) -> bool:
    """Whether an operand is read at the indices of the result, of its sizes."""
    dims = tuple(var(f"d{i}") for i in range(len(op.dims)))
    return op.maps[number] == op.result_maps[0] == dims and op.operands[number].sizes == op.results[0].sizes


def _vanishes(body: Body, position: int, number: int) -> bool:
    """Whether a value is zero where operand ``number`` is."""
    instr = body.instrs[position]
    if instr.op == "operand":
        return bool(instr.get("number") == number)
    if instr.op == "arith.mulf":
        return any(_vanishes(body, a, number) for a in instr.args)
    return instr.op in _KEEPING and _vanishes(body, instr.args[0], number)
