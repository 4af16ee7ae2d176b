"""Which tensors are computed so that many of their elements are exactly zero: by a ReLU, or by a threshold."""

from __future__ import annotations

from collections.abc import Sequence

from effc.compiler.ir.spec import Instr
from effc.compiler.pipeline.evaluation import filled
from effc.compiler.pipeline.graph import CONTRACTIONS, Op, Tensor
from effc.compiler.pipeline.views import chain, readers

#: Operations that are zero where one of their arguments is, and the other finite.
_PRODUCTS = frozenset({"arith.mulf"})
#: Operations that are zero where their first argument is.
_KEEPING = frozenset({"arith.divf", "arith.negf", "arith.extf", "arith.truncf", "math.absf"})


def vanishes(tensor: Tensor) -> bool:
    """Whether zeros are to be expected, from how ``tensor`` is computed: how many there are, and where, is seen when it is there."""
    pending, seen = _yielded(tensor), set[tuple[Op, int]]()
    while pending:
        op, position = place = pending.pop()
        if place in seen:
            continue
        seen.add(place)
        assert op.body is not None, "see _yielded"
        instr = op.body.instrs[position]
        candidates = {"arith.select": instr.args[1:], "arith.maximumf": instr.args}.get(instr.op, ())
        if any(_is_zero(op, a) for a in candidates):
            return True
        if instr.op == "operand":
            pending += _yielded(op.operands[instr.get("number")])
        elif instr.op in _PRODUCTS:
            pending += [(op, a) for a in instr.args]
        elif instr.op in _KEEPING:
            pending.append((op, instr.args[0]))
    return False


def share_of(tensor: Tensor) -> float | None:
    """How many zeros the nearest threshold behind ``tensor``, which is zero by it, or says where others are, is expected to make: a share;
    None where that is not known. Thresholds behind other products count for their own results.
    """
    pending, seen = [tensor], set[Tensor]()
    while pending:
        found = chain(pending.pop(0))[0]
        if found.share is not None:
            return found.share
        op = found.producer
        if found not in seen and op is not None and op.kind == "generic" and not op.reduction_dims:
            pending += op.operands
        seen.add(found)
    return None


def is_masked(op: Op) -> bool:
    """Whether what follows a product, ``op``, makes zeros of its results by a condition that these have no part in."""
    tensor, seen = op.results[0], {op}
    while len(users := readers(tensor)) == 1:
        (user,) = users
        if user.kind != "generic" or user.reduction_dims or user.body is None or len(user.results) != 1:
            return False
        seen.add(user)
        instr = user.body.instrs[user.body.yields[0]]
        if instr.op == "arith.select" and any(_is_zero(user, a) for a in instr.args[1:]):
            return not _comes_from(_read(user, instr.args[0]), seen - {user})
        tensor = user.results[0]
    return False


def chooses_zero(body: Sequence[Instr]) -> bool:
    """Whether a kernel may put zeros in the place of results."""
    chosen = (body[a] for i in body if i.op == "arith.select" for a in i.args[1:])
    return any(i.op == "constant" and i["value"] == 0 for i in chosen)


def _yielded(tensor: Tensor) -> list[tuple[Op, int]]:
    """Where the body of a pointwise operation has what ``tensor`` is; nothing of another."""
    op = chain(tensor)[0].producer
    if op is None or op.kind != "generic" or op.reduction_dims or op.body is None or len(op.results) != 1:
        return []
    return [(op, op.body.yields[0])]


def _is_zero(op: Op, position: int) -> bool:
    assert op.body is not None, "of a generic"
    instr = op.body.instrs[position]
    if instr.op == "operand":
        return filled(op.operands[instr.get("number")]) == 0
    return instr.op == "constant" and instr.get("value") == 0


def _read(op: Op, position: int) -> list[Tensor]:
    """The operands that a value of ``op`` depends on."""
    assert op.body is not None, "of a generic"
    found = (op.body.instrs[i] for i in op.body.behind(position))
    return [op.operands[i.get("number")] for i in found if i.op == "operand"]


def _comes_from(tensors: Sequence[Tensor], ops: set[Op]) -> bool:
    """Whether one of ``ops`` is behind ``tensors``, not looking behind other products."""
    pending, seen = list(tensors), set[Op]()
    while pending:
        op = chain(pending.pop())[0].producer
        if op is None or op in seen:
            continue
        if op in ops:
            return True
        seen.add(op)
        if op.kind not in CONTRACTIONS:
            pending += op.operands
    return False
