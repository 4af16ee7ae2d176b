"""What the kinds of ``reduce`` and of a combining ``store`` do with two values."""

from __future__ import annotations

from effc.compiler.codegen.cpu.ops import OpEmitter
from effc.compiler.codegen.cpu.text import Value, split_type
from effc.compiler.ir.errors import LoweringError
from effc.compiler.ir.spec import Instr

_FLOATS = frozenset({"f64", "f32", "bf16", "f16"})
_FLOAT_OPS = {"add": "addf", "mul": "mulf", "max": "maximumf", "min": "minimumf"}
_INTEGER_OPS = {"add": "addi", "mul": "muli", "max": "maxsi", "min": "minsi", "umax": "maxui", "umin": "minui", "and": "andi",
                "or": "ori", "xor": "xori"}  # fmt: skip
#: On bool, as eager: a sum is "any", a product "all".
_BOOL_OPS = {**_INTEGER_OPS, "add": "ori", "mul": "andi", "max": "ori", "min": "andi"}


def combine(ops: OpEmitter, kind: str, dtype: str, x: Value, y: Value) -> Value:
    """``x`` (so far) and ``y`` (new), both of ``dtype``; NaN wins in max and min; ``logaddexp``: log(e^x + e^y)."""
    if kind == "logaddexp" and dtype in ("f32", "f64"):
        return _log_add_exp(ops, dtype, x, y)
    return ops.emit(Instr(operation(kind, dtype), (0, 1), dtype), [x, y], [dtype, dtype])


def operation(kind: str, dtype: str) -> str:
    """The op of ``arith`` that combines two values. LoweringError: there is none."""
    table = _FLOAT_OPS if dtype in _FLOATS else _BOOL_OPS if dtype == "i1" else _INTEGER_OPS
    if kind not in table:
        raise LoweringError(f"no combining of {dtype} by {kind!r}: known are {', '.join(table)}")
    return f"arith.{table[kind]}"


def identity(kind: str, dtype: str) -> int | str:
    """The value that changes nothing under ``kind``."""
    if kind in ("add", "or", "xor", "umax"):
        return 0
    if kind == "mul":
        return 1
    if kind in ("and", "umin"):
        return 1 if dtype == "i1" else -1
    if kind == "logaddexp":
        return "-inf"
    if kind in ("max", "min", "argmax", "argmin"):
        largest = kind.endswith("min")
        if dtype in _FLOATS:
            return "inf" if largest else "-inf"
        if dtype == "i1":
            return int(largest)
        limit = 1 << (int(dtype[1:]) - 1)
        return limit - 1 if largest else -limit
    raise LoweringError(f"no identity of {kind!r} in {dtype}")


def takes_over(ops: OpEmitter, kind: str, dtype: str, x: Value, y: Value) -> Value:
    """i1: whether a new ``y`` replaces the running ``x``: the later of equal ones, and every NaN (as cummax)."""
    b = ops.b
    largest = kind.endswith("max")
    if dtype not in _FLOATS:
        signed = "sge" if largest else "sle"
        return b.compare("arith.cmpi", signed.replace("s", "u", 1) if dtype == "i1" else signed, y, x)
    mask = Instr("arith.cmpf", (0, 1), "i1", (("predicate", "oge" if largest else "ole"),))
    reached = ops.emit(mask, [y, x], [dtype, dtype])
    nan = ops.emit(Instr("arith.cmpf", (0, 1), "i1", (("predicate", "uno"),)), [y, y], [dtype, dtype])
    return b.op("arith.ori", reached, nan)


def _log_add_exp(ops: OpEmitter, dtype: str, x: Value, y: Value) -> Value:
    """max + log1p(exp(min - max)); equal infinities stay."""
    b = ops.b
    high, low = ops.extremum(True, x, y), ops.extremum(False, x, y)
    small = ops.emit(Instr("math.exp", (0,), dtype), [b.op("arith.subf", low, high)], [dtype])
    total = b.op("arith.addf", high, ops.emit(Instr("math.log1p", (0,), dtype), [small], [dtype]))
    infinity = b.constant("inf", dtype, split_type(x.type)[0])
    same = b.compare("arith.cmpf", "oeq", low, high)
    infinite = b.compare("arith.cmpf", "oeq", b.op("math.absf", high), infinity)
    return b.select(b.op("arith.andi", same, infinite), high, total)
