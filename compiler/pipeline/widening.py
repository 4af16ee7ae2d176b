"""Widenings move into what reads them: a value that was rounded to 16 bits is stored in 16 bits.

``x.float()`` at the head of a normalisation would else be the last member of the kernel that computes ``x``, which then stores four
bytes an element instead of two, and the same number. Parameters are widened once, not in each call, and stay as they are.
"""

from __future__ import annotations

from effc.compiler.pipeline.graph import Body, BodyInstr, Graph, Op, Tensor


def sink_widenings(graph: Graph) -> None:
    """Give each pointwise or reducing reader of a plain ``arith.extf`` to f32 its source instead; what nobody reads then, ``cut`` drops."""
    params = {source.tensor for source in graph.inputs if source.param}
    for op in graph.ops:
        if _widens(op) and op.operands[0] not in params:
            for user in dict.fromkeys(op.results[0].users):
                _move(user, op.results[0], op.operands[0])


def _widens(op: Op) -> bool:
    if op.kind != "generic" or op.body is None or op.maps != op.result_maps:
        return False
    instr = op.body.instrs[op.body.yields[0]]
    plain = instr.op == "arith.extf" and instr.dtype == "f32" and op.body.instrs[instr.args[0]].op == "operand"
    return plain and len(op.body.needed()) == 2


def _move(user: Op, result: Tensor, source: Tensor) -> None:
    """Let ``user`` read ``source`` and widen it itself, wherever it reads ``result`` at a position that its map gives."""
    if user.kind not in ("generic", "argreduce") or user.body is None:
        return
    plain = user.attributes.get("captured", len(user.operands))
    numbers = {i for i in range(plain) if user.operands[i] is result}
    for i in numbers:
        user.operands[i] = source
        result.users.remove(user)
        source.users.append(user)
    user.body = _widening(user.body, numbers, source.dtype)


def _widening(body: Body, numbers: set[int], dtype: str) -> Body:
    """``body`` where the operands ``numbers`` are of ``dtype``."""
    instrs: list[BodyInstr] = []
    at: list[int] = []
    for instr in body.instrs:
        narrow = instr.op == "operand" and instr.get("number") in numbers
        instrs.append(
            BodyInstr(instr.op, tuple(at[a] for a in instr.args), dtype if narrow else instr.dtype, instr.attributes)
        )
        if narrow:
            instrs.append(BodyInstr("arith.extf", (len(instrs) - 1,), instr.dtype))
        at.append(len(instrs) - 1)
    return Body(tuple(instrs), tuple(at[y] for y in body.yields))
