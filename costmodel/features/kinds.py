"""Kinds of instructions: what counts together."""

from __future__ import annotations

from effc.compiler.ir.spec import Instr

#: Kinds of instructions that are counted, each at every point where it runs.
KINDS = (
    "contract",
    "add",
    "multiply",
    "divide",
    "math",
    "compare",
    "integer",
    "convert",
    "reduce",
    "decode",
    "load",
    "store",
)

_CHEAP_MATH = frozenset({"absf", "absi", "ceil", "floor", "copysign", "fma", "round", "roundeven", "trunc"})


def kind_of(instr: Instr) -> str:
    dialect, _, name = instr.op.partition(".")
    if not name:
        return instr.op
    if dialect == "libm" or (dialect == "math" and name not in _CHEAP_MATH):
        return "math"
    if name.startswith(("cmp", "select", "max", "min")):
        return "compare"
    if name.startswith(("ext", "trunc", "sitofp", "uitofp", "fpto", "bitcast", "index_cast")) and dialect == "arith":
        return "convert"
    if name.startswith(("div", "rem")) and name.endswith("f"):
        return "divide"
    if name == "mulf":
        return "multiply"
    return "add" if name.endswith("f") or dialect == "math" else "integer"
