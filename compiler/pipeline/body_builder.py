"""Writing the body of an operation that a rewrite adds to the graph."""

from __future__ import annotations

from typing import Any

from effc.compiler.pipeline.graph import Body, BodyInstr

_BITS = {"i8": 8, "i16": 16, "i32": 32, "i64": 64, "f16": 16, "bf16": 16, "f32": 32, "f64": 64}


class BodyBuilder:
    """Collects instructions; each method returns the position of its value."""

    def __init__(self) -> None:
        self.instrs: list[BodyInstr] = []

    def operand(self, number: int, dtype: str) -> int:
        return self._add(BodyInstr("operand", (), dtype, (("number", number),)))

    def constant(self, value: float, dtype: str) -> int:
        return self._add(BodyInstr("constant", (), dtype, (("value", value if dtype[0] in "bf" else int(value)),)))

    def op(self, name: str, *args: int, dtype: str = "", attributes: tuple[tuple[str, Any], ...] = ()) -> int:
        """``dtype``: of the result, where it is not that of the first argument."""
        return self._add(BodyInstr(name, args, dtype or self.instrs[args[0]].dtype, attributes))

    def copy(self, instr: BodyInstr, args: tuple[int, ...]) -> int:
        """An instruction of another body, of other arguments."""
        return self._add(BodyInstr(instr.op, args, instr.dtype, instr.attributes))

    def cast(self, value: int, dtype: str, *, unsigned: bool = False) -> int:
        """A conversion between integers, between floats, or from one to the other; ``unsigned``: how an integer is read."""
        source = self.instrs[value].dtype
        if source == dtype:
            return value
        floats, wider = (source[0] in "bf", dtype[0] in "bf"), _BITS[dtype] > _BITS[source]
        sign = "u" if unsigned else "s"
        name = {
            (True, True): "extf" if wider else "truncf",
            (False, False): f"ext{sign}i" if wider else "trunci",
            (False, True): f"{sign}itofp",
            (True, False): f"fpto{sign}i",
        }[floats]
        return self.op(f"arith.{name}", value, dtype=dtype)

    def equals(self, value: int, known: float) -> int:
        """Whether a number is ``known``."""
        dtype = self.instrs[value].dtype
        name, predicate = ("arith.cmpf", "oeq") if dtype[0] in "bf" else ("arith.cmpi", "eq")
        return self.op(name, value, self.constant(known, dtype), dtype="i1", attributes=(("predicate", predicate),))

    def check(self, holds: int, message: str) -> None:
        """Raise IndexError(``message``) after the call where a condition does not hold."""
        self._add(BodyInstr("check", (holds,), "", (("message", message),)))

    def body(self, result: int) -> Body:
        return Body(tuple(self.instrs), (result,))

    def _add(self, instr: BodyInstr) -> int:
        self.instrs.append(instr)
        return len(self.instrs) - 1
