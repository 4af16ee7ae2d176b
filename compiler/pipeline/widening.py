"""Values that come from fewer bits by a few cheap operations move into what reads them: they are stored in those bits.

``x.float()`` at the head of a normalisation, or the dequantization of a residual, would else be the last member of the kernel that computes
``x``, which then stores four bytes an element instead of two or one, and the same number. Of parameters this is computed once, not in
each call, and stays as it is.
"""

from __future__ import annotations

from effc.compiler.pipeline.graph import Body, BodyInstr, Graph, Op, Tensor

_BITS = {"i1": 8, "i8": 8, "i16": 16, "bf16": 16, "f16": 16, "i32": 32, "f32": 32, "i64": 64, "f64": 64}
_CHEAP = frozenset(
    {
        f"arith.{op}"
        for op in ("extf", "truncf", "extsi", "extui", "sitofp", "uitofp", "addf", "subf", "mulf", "subi", "addi")
    }
    | {"operand", "constant"}
)
#: A dequantization: widen, subtract, multiply, with its constants, and round.
_MOST = 7


def sink_widenings(graph: Graph) -> None:
    """Give each pointwise or reducing reader of such a value its source instead; what nobody reads then, ``cut`` drops."""
    params = {source.tensor for source in graph.inputs if source.param}
    for op in graph.ops:
        if _widens(op) and op.operands[0] not in params:
            for user in dict.fromkeys(op.results[0].users):
                _move(user, op.results[0], op)


def _widens(op: Op) -> bool:
    if op.kind != "generic" or op.body is None or len(op.operands) != 1 or op.maps != op.result_maps:
        return False
    instrs = [op.body.instrs[p] for p in op.body.needed()]
    source, result = op.operands[0].dtype, op.results[0].dtype
    narrower = _BITS[source] < _BITS[result] and (result == "f32" or source == "i8")
    return narrower and len(instrs) <= _MOST and all(i.op in _CHEAP for i in instrs)


def _move(user: Op, result: Tensor, producer: Op) -> None:
    """Let ``user`` read what ``producer`` reads and compute ``result`` itself, at positions that its map or its body gives."""
    if user.kind not in ("generic", "argreduce") or user.body is None:
        return
    source = producer.operands[0]
    plain = user.attributes.get("captured", len(user.operands))
    numbers = {i for i in range(len(user.operands)) if user.operands[i] is result}
    for i in numbers:
        user.operands[i] = source
        result.users.remove(user)
        source.users.append(user)
    assert producer.body is not None
    reads = {("operand", i) if i < plain else ("extract", i - plain) for i in numbers}
    user.body = _with(user.body, reads, producer.body)


def _with(body: Body, reads: set[tuple[str, int]], inner: Body) -> Body:
    """``body`` where what it ``reads`` (by instruction and number) is what ``inner`` yields of that."""
    instrs: list[BodyInstr] = []
    at: list[int] = []
    for instr in body.instrs:
        if (instr.op, instr.get("number")) in reads:
            inside: list[int] = []
            for part in inner.instrs:
                if part.op == "operand":
                    args = tuple(at[a] for a in instr.args)
                    instrs.append(BodyInstr(instr.op, args, part.dtype, instr.attributes))
                else:
                    instrs.append(BodyInstr(part.op, tuple(inside[a] for a in part.args), part.dtype, part.attributes))
                inside.append(len(instrs) - 1)
            at.append(inside[inner.yields[0]])
        else:
            instrs.append(BodyInstr(instr.op, tuple(at[a] for a in instr.args), instr.dtype, instr.attributes))
            at.append(len(instrs) - 1)
    return Body(tuple(instrs), tuple(at[y] for y in body.yields))
