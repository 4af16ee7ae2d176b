"""Bodies of pointwise operations, evaluated for given values in the arithmetic that kernels compute in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from effc.compiler.pipeline.graph import Body, BodyInstr, Op, Tensor
from effc.compiler.pipeline.views import chain

Values = NDArray[Any]

DTYPES: Mapping[str, Any] = {
    "f64": np.float64, "f32": np.float32, "f16": np.float16, "bf16": np.float32,  # rounded where it is computed
    "i64": np.int64, "i32": np.int32, "i16": np.int16, "i8": np.int8, "i1": np.bool_,
}  # fmt: skip
_UNSIGNED: Mapping[str, Any] = {"i32": np.uint32, "i16": np.uint16, "i8": np.uint8, "i1": np.bool_}
_OPS: Mapping[str, Callable[..., Any]] = {
    "arith.addf": np.add, "arith.subf": np.subtract, "arith.mulf": np.multiply, "arith.divf": np.divide,
    "arith.addi": np.add, "arith.subi": np.subtract, "arith.muli": np.multiply, "arith.xori": np.bitwise_xor,
    "arith.maximumf": np.maximum, "arith.minimumf": np.minimum, "arith.maxsi": np.maximum, "arith.minsi": np.minimum,
    "arith.select": np.where, "math.roundeven": np.rint,
}  # fmt: skip
_COMPARISONS: Mapping[str, Callable[..., Any]] = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
}  # fmt: skip
_CASTS = frozenset(f"arith.{op}" for op in ("extf", "truncf", "extsi", "trunci", "sitofp", "extui", "uitofp"))


def filled(tensor: Tensor) -> float | None:
    """The number that all of a tensor's elements are, where it is a constant."""
    op = chain(tensor)[0].producer
    if op is None or op.kind != "fill" or op.body is None:
        return None
    instr = op.body.instrs[op.body.yields[0]]
    value = instr.get("value") if instr.op == "constant" else None
    return float(value) if isinstance(value, (int, float)) else None


def argument(op: Op, *, captured: int = 0) -> int | None:
    """The operand of which ``op`` is a pointwise function, where its others are numbers but for ``captured`` ones; None where it is none
    of that kind.
    """
    if op.kind != "generic" or op.body is None or op.reduction_dims or len(op.results) != 1:
        return None
    if op.attributes.get("captured", len(op.operands)) != len(op.operands) - captured:
        return None
    read = {i.get("number") for i in (op.body.instrs[p] for p in op.body.needed()) if i.op == "operand"}
    open_ = [n for n in read if filled(op.operands[n]) is None]
    if len(open_) != 1 or op.maps[open_[0]] != op.result_maps[0] or len(op.result_maps[0]) != len(op.dims):
        return None
    return int(open_[0])


def evaluate(op: Op, given: Mapping[int, Values], position: int | None = None) -> Values | None:
    """What the body of ``op`` yields, or holds at ``position``, for the values of operands; None where that is not known, or not finite."""
    body = op.body
    assert body is not None
    made: dict[int, Values] = {}
    last, needed = body.yields[0], body.needed()
    if position is not None:
        last, needed = position, body.behind(position)
    with np.errstate(all="ignore"):
        for at in sorted(needed):
            instr = body.instrs[at]
            value = (
                _operand(op, instr, given) if instr.op == "operand" else _value(instr, [made[a] for a in instr.args])
            )
            if value is None or not np.isfinite(value).all():
                return None
            made[at] = _rounded(value) if instr.dtype == "bf16" else value
    return made[last]


def _rounded(value: Values) -> Values:
    """Finite float32 to the nearest bfloat16, ties to even."""
    bits = value.astype(np.float32).view(np.uint32)
    even = (bits >> np.uint32(16)) & np.uint32(1)
    return ((bits + np.uint32(0x7FFF) + even) & np.uint32(0xFFFF0000)).view(np.float32)


def _operand(op: Op, instr: BodyInstr, given: Mapping[int, Values]) -> Values | None:
    number = instr.get("number")
    return given[number] if number in given else _number(filled(op.operands[number]), instr.dtype)


def _value(instr: BodyInstr, args: Sequence[Values]) -> Values | None:
    if instr.op == "constant":
        return _number(instr.get("value"), instr.dtype)
    if instr.dtype not in DTYPES or any(a is None for a in args):
        return None
    if instr.op in _CASTS:
        return _cast(instr, args[0])
    if instr.op in ("arith.fptosi", "arith.fptoui"):
        limits = np.iinfo(DTYPES[instr.dtype] if instr.op == "arith.fptosi" else _UNSIGNED.get(instr.dtype, np.uint64))
        inside = (args[0] >= limits.min) & (args[0] <= limits.max)
        return np.trunc(args[0]).astype(limits.dtype).astype(DTYPES[instr.dtype]) if inside.all() else None
    if instr.op in ("arith.cmpf", "arith.cmpi"):
        predicate = instr.get("predicate")
        unsigned = instr.op == "arith.cmpi" and predicate[0] == "u"
        compare = _COMPARISONS.get(predicate[-2:])
        return None if unsigned or compare is None else np.asarray(compare(*args))
    function = _OPS.get(instr.op)
    return None if function is None else np.asarray(function(*args), dtype=DTYPES[instr.dtype])


def _cast(instr: BodyInstr, value: Values) -> Values | None:
    if instr.op in ("arith.extui", "arith.uitofp"):
        name = next((n for n, d in DTYPES.items() if d == value.dtype), "")
        if name not in _UNSIGNED:
            return None
        value = value.astype(_UNSIGNED[name])
    return value.astype(DTYPES[instr.dtype])


def _number(value: Any, dtype: str) -> Values | None:
    if not isinstance(value, (int, float)) or dtype not in DTYPES:
        return None
    return np.asarray(value).astype(DTYPES[dtype])


def constant_of(body: Body) -> float | None:
    """The number that a body without operands yields."""
    instr = body.instrs[body.yields[0]]
    value = instr.get("value") if instr.op == "constant" else None
    return float(value) if isinstance(value, (int, float)) else None
