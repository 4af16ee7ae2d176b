"""A writer of straight-line MLIR: Python arithmetic on ``Value`` becomes arith, math and vector ops on all lanes."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_FLOAT = {"f32": ("<f", "<I", 10), "f64": ("<d", "<Q", 18)}
_INT_OF = {"f32": "i32", "f64": "i64"}
_FLOAT_OF = {"i32": "f32", "i64": "f64"}

#: f32 lanes of an AVX-512 register.
REGISTER_LANES = 16


_REGISTER = f"vector<{REGISTER_LANES}xf32>"


def _spelling(value: float, element: str) -> tuple[int, str]:
    """The bits of a float rounded to ``element``, and MLIR's text of them."""
    pack, unpack, width = _FLOAT[element]
    bits = int(struct.unpack(unpack, struct.pack(pack, value))[0])
    return bits, f"0x{bits:0{width - 2}X}"


@dataclass(frozen=True, eq=False)
class Value:
    """An SSA value; ``element`` is its element type (``f32 f64 i32 i64 i1``)."""

    builder: Builder
    name: str
    element: str

    def _binary(self, other: Value | float, float_op: str, int_op: str) -> Value:
        rhs = self.builder.lift(other, self.element)
        return self.builder.op(float_op if self.element in _FLOAT else int_op, [self, rhs], self.element)

    def _reversed(self, other: float, float_op: str, int_op: str) -> Value:
        return self.builder.lift(other, self.element)._binary(self, float_op, int_op)

    def __add__(self, other: Value | float) -> Value:
        return self._binary(other, "arith.addf", "arith.addi")

    def __radd__(self, other: float) -> Value:
        return self._reversed(other, "arith.addf", "arith.addi")

    def __sub__(self, other: Value | float) -> Value:
        return self._binary(other, "arith.subf", "arith.subi")

    def __rsub__(self, other: float) -> Value:
        return self._reversed(other, "arith.subf", "arith.subi")

    def __mul__(self, other: Value | float) -> Value:
        return self._binary(other, "arith.mulf", "arith.muli")

    def __rmul__(self, other: float) -> Value:
        return self._reversed(other, "arith.mulf", "arith.muli")

    def __truediv__(self, other: Value | float) -> Value:
        return self._binary(other, "arith.divf", "arith.divsi")

    def __rtruediv__(self, other: float) -> Value:
        return self._reversed(other, "arith.divf", "arith.divsi")

    def __neg__(self) -> Value:
        return self.builder.op("arith.negf", [self], self.element)

    def __and__(self, other: Value | int) -> Value:
        return self._binary(other, "", "arith.andi")

    def __or__(self, other: Value | int) -> Value:
        return self._binary(other, "", "arith.ori")

    def __xor__(self, other: Value | int) -> Value:
        return self._binary(other, "", "arith.xori")

    def __lshift__(self, other: int) -> Value:
        return self._binary(other, "", "arith.shli")

    def __rshift__(self, other: int) -> Value:
        """The arithmetic shift."""
        return self._binary(other, "", "arith.shrsi")

    def compare(self, predicate: str, other: Value | float) -> Value:
        """``arith.cmpf`` or ``arith.cmpi`` by MLIR's predicate name."""
        rhs = self.builder.lift(other, self.element)
        kind = "arith.cmpf" if self.element in _FLOAT else "arith.cmpi"
        return self.builder.op(f"{kind} {predicate},", [self, rhs], "i1", spell=self.element)

    def __lt__(self, other: Value | float) -> Value:
        return self.compare("olt" if self.element in _FLOAT else "slt", other)

    def __gt__(self, other: Value | float) -> Value:
        return self.compare("ogt" if self.element in _FLOAT else "sgt", other)

    def equals(self, other: Value | float) -> Value:
        return self.compare("oeq" if self.element in _FLOAT else "eq", other)


class Builder:
    """Collects the text of one function over ``lanes`` elements.

    ``fma``, ``avx512``: whether the target has fused multiply-add, and vectors of 64 bytes.
    """

    def __init__(self, lanes: int, fma: bool, avx512: bool = False) -> None:
        self.lanes = lanes
        self.has_fma = fma
        self.has_registers = avx512 and lanes % REGISTER_LANES == 0
        self._lines: list[str] = []
        self._constants: dict[tuple[str, int], Value] = {}
        self._count = 0
        self._depth = 0

    # -- types and constants ----------------------------------------------------------------------------------------
    def type(self, element: str) -> str:
        return element if self.lanes == 1 else f"vector<{self.lanes}x{element}>"

    def constant(self, value: float, element: str) -> Value:
        """A splat; a float is rounded to ``element`` once, to nearest."""
        if element in _FLOAT:
            bits, text = _spelling(value, element)
        else:
            bits, text = int(value), str(int(value))
        if (element, bits) not in self._constants:
            body = text if self.lanes == 1 else f"dense<{text}>"
            name = f"%c{len(self._constants)}"
            self._constants[element, bits] = Value(self, name, element)
            self._lines.insert(len(self._constants) - 1, f"  {name} = arith.constant {body} : {self.type(element)}")
        return self._constants[element, bits]

    def lift(self, value: Value | float, element: str) -> Value:
        return value if isinstance(value, Value) else self.constant(value, element)

    # -- ops --------------------------------------------------------------------------------------------------------
    def _fresh(self) -> str:
        self._count += 1
        return f"%{self._count}"

    def _emit(self, line: str) -> None:
        self._lines.append("  " * (self._depth + 1) + line)

    def op(self, name: str, args: Sequence[Value], element: str, spell: str | None = None) -> Value:
        """An op whose assembly ends in one type, ``spell`` (default: the result's)."""
        result = Value(self, self._fresh(), element)
        operands = ", ".join(a.name for a in args)
        self._emit(f"{result.name} = {name} {operands} : {self.type(spell or element)}")
        return result

    def cast(self, name: str, value: Value, element: str) -> Value:
        result = Value(self, self._fresh(), element)
        self._emit(f"{result.name} = {name} {value.name} : {self.type(value.element)} to {self.type(element)}")
        return result

    def fma(self, a: Value, b: Value | float, c: Value | float) -> Value:
        """``a*b + c``: one rounding where the target can, else two."""
        if not self.has_fma:
            return a * b + c
        return self.op("math.fma", [a, self.lift(b, a.element), self.lift(c, a.element)], a.element)

    def scale(self, p: Value, n: Value) -> Value:
        """``p * 2^n`` in f32, n a whole f32, rounded once also where it is subnormal: AVX-512's vscalefps, on each register."""
        mask, rounding = (Value(self, self._fresh(), "") for _ in range(2))
        self._emit(f"{mask.name} = arith.constant -1 : i16")
        self._emit(f"{rounding.name} = arith.constant 4 : i32")  # the current rounding mode

        def part(x: str, power: str) -> str:
            call = (
                f"{x}, {power}, {x}, {mask.name}, {rounding.name}) : ({_REGISTER}, {_REGISTER}, {_REGISTER}, i16, i32)"
            )
            return f'llvm.call_intrinsic "llvm.x86.avx512.mask.scalef.ps.512"({call} -> {_REGISTER}'

        return self._each_register([p, n], part)

    def lookup(self, table: Sequence[float], index: Value) -> Value:
        """``table[index mod 16]`` in f32 of i32: AVX-512's vpermps, on each register."""
        assert len(table) == REGISTER_LANES
        name = self._fresh()
        self._emit(f"{name} = arith.constant dense<[{', '.join(_spelling(v, 'f32')[1] for v in table)}]> : {_REGISTER}")

        def part(where: str) -> str:
            call = f"({name}, {where}) : ({_REGISTER}, vector<{REGISTER_LANES}xi32>) -> {_REGISTER}"
            return f'llvm.call_intrinsic "llvm.x86.avx512.permvar.sf.512"{call}'

        return self._each_register([index], part)

    def _each_register(self, args: Sequence[Value], write: Callable[..., str]) -> Value:
        """f32 of an instruction that knows one register: ``write`` gives its text for the names of one register's operands."""
        if self.lanes == REGISTER_LANES:
            result = Value(self, self._fresh(), "f32")
            self._emit(f"{result.name} = {write(*(a.name for a in args))}")
            return result
        total = self.constant(0.0, "f32")
        for start in range(0, self.lanes, REGISTER_LANES):
            parts, merged = [self._part(a, start) for a in args], Value(self, self._fresh(), "f32")
            result = Value(self, self._fresh(), "f32")
            self._emit(f"{result.name} = {write(*parts)}")
            where = f"{{offsets = [{start}], strides = [1]}} : {_REGISTER} into {self.type('f32')}"
            self._emit(f"{merged.name} = vector.insert_strided_slice {result.name}, {total.name} {where}")
            total = merged
        return total

    def _part(self, value: Value, start: int) -> str:
        name = self._fresh()
        where = f"{{offsets = [{start}], sizes = [{REGISTER_LANES}], strides = [1]}}"
        part = f"vector<{REGISTER_LANES}x{value.element}>"
        self._emit(f"{name} = vector.extract_strided_slice {value.name} {where} : {self.type(value.element)} to {part}")
        return name

    def polynomial(self, x: Value, coefficients: Sequence[float]) -> Value:
        """``c[0] + c[1] x + …`` by Horner's rule; from degree 5 on in f32 even and odd powers apart, which halves the wait."""
        if x.element == "f32" and len(coefficients) > 5:
            square = x * x
            odd = self._horner(square, coefficients[1::2])
            return self.fma(odd, x, self._horner(square, coefficients[::2]))
        return self._horner(x, coefficients)

    def piecewise(self, x: Value, index: Value, tables: Sequence[Sequence[float]]) -> Value:
        """The polynomial of ``x`` whose coefficients, lowest first, stand in ``tables`` at ``index``."""
        total = self.lookup(tables[-1], index)
        for table in reversed(tables[:-1]):
            total = self.fma(total, x, self.lookup(table, index))
        return total

    def _horner(self, x: Value, coefficients: Sequence[float]) -> Value:
        total = self.constant(coefficients[-1], x.element)
        for c in reversed(coefficients[:-1]):
            total = self.fma(total, x, c)
        return total

    def select(self, mask: Value, a: Value | float, b: Value | float) -> Value:
        """``a`` where ``mask``, else ``b``; one of them is a ``Value``."""
        element = a.element if isinstance(a, Value) else b.element if isinstance(b, Value) else ""
        lhs, rhs = self.lift(a, element), self.lift(b, element)
        result = Value(self, self._fresh(), element)
        types = self.type(element) if self.lanes == 1 else f"{self.type('i1')}, {self.type(element)}"
        self._emit(f"{result.name} = arith.select {mask.name}, {lhs.name}, {rhs.name} : {types}")
        return result

    def clamp(self, x: Value, low: float, high: float) -> Value:
        """NaN passes."""
        x = self.select(x < low, low, x)
        return self.select(x > high, high, x)

    def bits(self, x: Value) -> Value:
        return self.cast("arith.bitcast", x, _INT_OF[x.element])

    def from_bits(self, x: Value) -> Value:
        return self.cast("arith.bitcast", x, _FLOAT_OF[x.element])

    def unary(self, name: str, x: Value) -> Value:
        return self.op(name, [x], x.element)

    def abs(self, x: Value) -> Value:
        return self.unary("math.absf", x)

    def sqrt(self, x: Value) -> Value:
        return self.unary("math.sqrt", x)

    def copysign(self, magnitude: Value, sign: Value) -> Value:
        return self.op("math.copysign", [magnitude, sign], magnitude.element)

    def widen(self, x: Value) -> Value:
        return self.cast("arith.extf", x, "f64")

    def narrow(self, x: Value) -> Value:
        return self.cast("arith.truncf", x, "f32")

    # -- lanes ------------------------------------------------------------------------------------------------------
    def each_lane(self, name: str, args: Sequence[Value]) -> Value:
        """The scalar op ``name``, which the pipeline turns into libm's call, for one lane after the other."""
        element = args[0].element
        if self.lanes == 1:
            return self.op(name, args, element)
        result = Value(self, self._fresh(), element)
        tag = f"lane{result.name[1:]}"
        vector = self.type(element)
        low, high, step = (f"%{tag}_{part}" for part in ("low", "high", "step"))
        for text, bound in ((low, 0), (high, self.lanes), (step, 1)):
            self._emit(f"{text} = arith.constant {bound} : index")
        loop = f"scf.for %{tag}_i = {low} to {high} step {step} iter_args(%{tag}_in = {args[0].name}) -> ({vector})"
        self._emit(f"{result.name} = {loop} {{")
        for k, a in enumerate(args):
            self._emit(f"  %{tag}_x{k} = vector.extract {a.name}[%{tag}_i] : {element} from {vector}")
        operands = ", ".join(f"%{tag}_x{k}" for k in range(len(args)))
        self._emit(f"  %{tag}_y = {name} {operands} : {element}")
        self._emit(f"  %{tag}_out = vector.insert %{tag}_y, %{tag}_in[%{tag}_i] : {element} into {vector}")
        self._emit(f"  scf.yield %{tag}_out : {vector}")
        self._emit("}")
        return result

    def where_any(self, mask: Value, value: Value, slow: Callable[[], Value]) -> Value:
        """``slow()`` on the lanes of ``mask``, ``value`` on the others; where no lane is set nothing slow runs."""
        condition = mask.name
        if self.lanes > 1:
            condition = self._fresh()
            self._emit(f"{condition} = vector.reduction <or>, {mask.name} : {self.type('i1')} into i1")
        result = Value(self, self._fresh(), value.element)
        self._emit(f"{result.name} = scf.if {condition} -> ({self.type(value.element)}) {{")
        self._depth += 1
        merged = self.select(mask, slow(), value)
        self._emit(f"scf.yield {merged.name} : {self.type(value.element)}")
        self._depth -= 1
        self._emit("} else {")
        self._emit(f"  scf.yield {value.name} : {self.type(value.element)}")
        self._emit("}")
        return result

    def function(self, name: str, arguments: Sequence[Value], result: Value) -> str:
        """The text of ``func.func private @name``."""
        parameters = ", ".join(f"{a.name}: {self.type(a.element)}" for a in arguments)
        returned = self.type(result.element)
        head = f"func.func private @{name}({parameters}) -> {returned} {{"
        return "\n".join([head, *self._lines, f"  return {result.name} : {returned}", "}", ""])

    def argument(self, index: int, element: str) -> Value:
        return Value(self, f"%arg{index}", element)
