"""A builder that writes MLIR text: fresh SSA names, uniqued constants, structured loops.

Kernels are written as text because parsing in C++ is several times faster than making ops one by one through the Python
bindings. All index arithmetic is ``i64`` (``scf.for`` takes it), pointers are ``!llvm.ptr``, vectors are loaded and
stored through
``llvm.load``/``llvm.store`` with the element's alignment. Functions are ``llvm.func``; ``arith``, ``math``, ``scf``,
``vector`` and ``llvm`` ops mix freely inside.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

PTR = "!llvm.ptr"
I64 = "i64"

#: LLVM's own unrolling and vectorising only bloat loops that are emitted in their final form; both stay off.
_KEEP_LOOP = "{llvm.loop_annotation = #llvm.loop_annotation<unroll = <disable = true>, vectorize = <disable = true>>}"


class Value(NamedTuple):
    """An SSA value: its name with the ``%``, and its MLIR type."""

    name: str
    type: str


def vector_type(lanes: int, element: str) -> str:
    """``vector<lanes x element>``; the element itself for one lane."""
    return element if lanes == 1 else f"vector<{lanes}x{element}>"


def split_type(type_: str) -> tuple[int, str]:
    """``(lanes, element)`` of a scalar or one-dimensional vector type."""
    if not type_.startswith("vector<"):
        return 1, type_
    lanes, element = type_[7:-1].split("x", 1)
    return int(lanes), element


def element_bytes(element: str) -> int:
    """Bytes of one element in memory."""
    return 8 if element == PTR else max(int(element.lstrip("ibf")) // 8, 1)


@dataclass
class Loop:
    """An open ``scf.for``: its induction variable, its carried values, and after it closes its results."""

    index: Value
    carried: list[Value]
    results: list[Value] = field(default_factory=list)
    yielded: list[Value] | None = None

    def yield_(self, values: Sequence[Value]) -> None:
        """What the next iteration carries; called once, before the loop closes, where it carries anything."""
        self.yielded = list(values)


class Builder:
    """Writes one module. ``function`` opens a function; ops append to it at the current indentation."""

    def __init__(self) -> None:
        self._finished: list[str] = []
        self._declared: dict[str, str] = {}
        self._lines: list[str] = []
        self._constants: dict[tuple[str, str], Value] = {}
        self._integers: dict[str, int] = {}
        self._indent = 1
        self._counter = 0

    def text(self) -> str:
        """The whole module."""
        return "module {\n" + "\n".join([*self._declared.values(), *self._finished]) + "\n}\n"

    def declare(self, name: str, text: str) -> None:
        """Add a helper function (or external declaration) to the module once."""
        self._declared.setdefault(name, text)

    @contextmanager
    def function(self, name: str, arguments: Sequence[str], *, private: bool = False) -> Iterator[list[Value]]:
        """Open ``llvm.func @name`` that returns nothing; yields its arguments. Functions do not nest, nor are they
        inlined.
        """
        self._lines, self._constants, self._integers = [], {}, {}
        values = [self._fresh(t) for t in arguments]
        yield values
        header = ", ".join(f"{v.name}: {v.type}" for v in values)
        constants = [f"    {v.name} = {text}" for (text, _), v in self._constants.items()]
        linkage = "internal " if private else ""
        self._finished.append(
            "\n".join(
                [
                    f"  llvm.func {linkage}@{name}({header}) attributes {{no_inline}} {{",
                    *constants,
                    *self._lines,
                    "    llvm.return",
                    "  }",
                ]
            )
        )

    # -- plain ops ----------------------------------------------------------------------------------------------------
    def line(self, text: str) -> None:
        """An op without a result."""
        self._lines.append("  " * (self._indent + 1) + text)

    def emit(self, text: str, type_: str) -> Value:
        """An op with one result of ``type_``; ``text`` is what follows the ``=``."""
        value = self._fresh(type_)
        self.line(f"{value.name} = {text}")
        return value

    def op(self, name: str, *args: Value) -> Value:
        """An op whose operands and result share one type, printed ``name %a, %b : type``."""
        return self.emit(f"{name} {', '.join(a.name for a in args)} : {args[0].type}", args[0].type)

    def cast(self, name: str, value: Value, element: str) -> Value:
        """A conversion to ``element``, keeping the number of lanes."""
        to = vector_type(split_type(value.type)[0], element)
        return self.emit(f"{name} {value.name} : {value.type} to {to}", to)

    def compare(self, name: str, predicate: str, a: Value, b: Value) -> Value:
        """``arith.cmpi`` or ``arith.cmpf`` (``name``): an ``i1`` a lane."""
        result = vector_type(split_type(a.type)[0], "i1")
        return self.emit(f"{name} {predicate}, {a.name}, {b.name} : {a.type}", result)

    def select(self, condition: Value, a: Value, b: Value) -> Value:
        types = f"{condition.type}, {a.type}" if condition.type != "i1" else a.type
        return self.emit(f"arith.select {condition.name}, {a.name}, {b.name} : {types}", a.type)

    def call(self, function: str, args: Sequence[Value], result: str) -> Value:
        """Call a ``func.func`` that was given to ``declare``."""
        types = ", ".join(a.type for a in args)
        return self.emit(f"func.call @{function}({', '.join(a.name for a in args)}) : ({types}) -> {result}", result)

    # -- constants -----------------------------------------------------------------------------------------------------
    def constant(self, value: int | float | str | bool, element: str, lanes: int = 1) -> Value:
        """A constant (splat over ``lanes``); floats are rounded to nearest, and may be ``"nan"``, ``"inf"``,
        ``"-inf"``.
        """
        type_ = vector_type(lanes, element)
        literal = float_literal(value, element) if element[0] in "fb" else integer_literal(int(value), element)
        body = literal if lanes == 1 else f"dense<{literal}>"
        text = f"arith.constant {body}" if type_ == "i1" else f"arith.constant {body} : {type_}"
        return self._entry(text, type_, int(value) if type_ == I64 else None)

    def index(self, value: int) -> Value:
        """An ``i64`` constant."""
        return self.constant(value, I64)

    def iota(self, lanes: int, element: str = I64) -> Value:
        """``[0, 1, …, lanes - 1]``."""
        if lanes == 1:
            return self.constant(0, element)
        type_ = vector_type(lanes, element)
        return self._entry(f"arith.constant dense<[{', '.join(map(str, range(lanes)))}]> : {type_}", type_, None)

    def integer_of(self, value: Value) -> int | None:
        """The number behind an ``i64`` constant, else None."""
        return self._integers.get(value.name)

    def broadcast(self, value: Value, lanes: int) -> Value:
        """A scalar to all lanes; a vector of ``lanes`` stays as it is."""
        have, element = split_type(value.type)
        if have == lanes:
            return value
        to = vector_type(lanes, element)
        return self.emit(f"vector.broadcast {value.name} : {element} to {to}", to)

    def shuffle(self, value: Value, lanes: Sequence[int], other: Value | None = None) -> Value:
        """The chosen lanes of a vector, behind which those of ``other`` are numbered; one lane is a scalar."""
        if len(lanes) == 1:
            return self.extract(value, lanes[0])
        other = value if other is None else other
        to = f"vector<{len(lanes)}x{split_type(value.type)[1]}>"
        picked = ", ".join(map(str, lanes))
        return self.emit(f"vector.shuffle {value.name}, {other.name} [{picked}] : {value.type}, {other.type}", to)

    def extract(self, value: Value, lane: int) -> Value:
        """One lane of a vector."""
        element = split_type(value.type)[1]
        return self.emit(f"vector.extract {value.name}[{lane}] : {element} from {value.type}", element)

    def vector_of(self, values: Sequence[float], element: str = "f32") -> Value:
        """A constant vector."""
        type_ = vector_type(len(values), element)
        literals = ", ".join(
            float_literal(v, element) if element[0] == "f" else integer_literal(int(v), element) for v in values
        )
        return self._entry(f"arith.constant dense<[{literals}]> : {type_}", type_, None)

    def first_lanes(self, lanes: int, count: Value) -> Value:
        """A mask (i1 a lane) of the first ``count`` lanes; ``count`` is i64 and below 2^31."""
        limit = self.broadcast(self.cast("arith.trunci", count, "i32"), lanes)
        return self.compare("arith.cmpi", "slt", self.iota(lanes, "i32"), limit)

    # -- i64 arithmetic, folded where both sides are constants ---------------------------------------------------------
    def add(self, a: Value, b: Value | int) -> Value:
        return self._fold("arith.addi", a, b, lambda x, y: x + y, 0)

    def sub(self, a: Value, b: Value | int) -> Value:
        return self._fold("arith.subi", a, b, lambda x, y: x - y, 0)

    def mul(self, a: Value, b: Value | int) -> Value:
        return self._fold("arith.muli", a, b, lambda x, y: x * y, 1)

    def div(self, a: Value, b: Value | int) -> Value:
        """``a // b`` for a >= 0 and b > 0."""
        return self._fold("arith.divui", a, b, lambda x, y: x // y, 1)

    def rem(self, a: Value, b: Value | int) -> Value:
        """``a % b`` for a >= 0 and b > 0."""
        return self._fold("arith.remui", a, b, lambda x, y: x % y, None)

    def minimum(self, a: Value, b: Value | int) -> Value:
        return self._fold("arith.minsi", a, b, min, None)

    def maximum(self, a: Value, b: Value | int) -> Value:
        return self._fold("arith.maxsi", a, b, max, None)

    # -- memory --------------------------------------------------------------------------------------------------------
    def element_pointer(self, pointer: Value, index: Value, element: str) -> Value:
        """``pointer + index`` in elements; a vector of indices gives a vector of pointers."""
        lanes = split_type(index.type)[0]
        to = PTR if lanes == 1 else f"vector<{lanes}x{PTR}>"
        if self._integers.get(index.name) == 0:
            return pointer
        return self.emit(
            f"llvm.getelementptr {pointer.name}[{index.name}] : ({PTR}, {index.type}) -> {to}, {element}", to
        )

    def load(self, pointer: Value, type_: str) -> Value:
        align = element_bytes(split_type(type_)[1])
        return self.emit(f"llvm.load {pointer.name} {{alignment = {align} : i64}} : {PTR} -> {type_}", type_)

    def masked_load(self, pointer: Value, mask: Value, other: Value) -> Value:
        """A vector from ``pointer`` on where ``mask`` (i1 a lane) holds, ``other`` elsewhere: nothing is read there."""
        align = element_bytes(split_type(other.type)[1])
        return self.emit(
            f"llvm.intr.masked.load {pointer.name}, {mask.name}, {other.name} {{alignment = {align} : i32}} "
            f": ({PTR}, {mask.type}, {other.type}) -> {other.type}",
            other.type,
        )

    def store(self, value: Value, pointer: Value) -> None:
        align = element_bytes(split_type(value.type)[1])
        self.line(f"llvm.store {value.name}, {pointer.name} {{alignment = {align} : i64}} : {value.type}, {PTR}")

    def prefetch(self, pointer: Value, level: int = 2) -> None:
        """Ask for the line at ``pointer``, which need not be mapped, into the cache of ``level`` 1 or 2."""
        hint = 4 - level
        self.line(
            f'"llvm.intr.prefetch"({pointer.name}) <{{cache = 1 : i32, hint = {hint} : i32, rw = 0 : i32}}> : ({PTR}) -> ()'
        )

    def opaque(self, pointer: Value) -> Value:
        """The same pointer, of which LLVM does not know that it is: loads through it are not merged with others."""
        return self.emit(f'llvm.inline_asm asm_dialect = att "", "=r,0" {pointer.name} : ({PTR}) -> {PTR}', PTR)

    def stack(self, elements: int, element: str, alignment: int = 64) -> Value:
        """A stack array; call it at the top of a function, never in a loop."""
        count = self.index(elements)
        return self.emit(
            f"llvm.alloca {count.name} x {element} {{alignment = {alignment} : i64}} : (i64) -> {PTR}", PTR
        )

    # -- structure -----------------------------------------------------------------------------------------------------
    @contextmanager
    def loop(self, lower: Value, upper: Value, step: Value | int = 1, carried: Sequence[Value] = ()) -> Iterator[Loop]:
        """``scf.for`` over ``i64``; with ``carried`` the body must call ``yield_``, and ``results`` holds what it
        leaves.
        """
        step = self.index(step) if isinstance(step, int) else step
        loop = Loop(self._fresh(I64), [self._fresh(v.type) for v in carried])
        head = f"scf.for {loop.index.name} = {lower.name} to {upper.name} step {step.name}"
        name = self._fresh("").name
        if carried:
            inits = ", ".join(f"{c.name} = {v.name}" for c, v in zip(loop.carried, carried, strict=True))
            types = ", ".join(v.type for v in carried)
            self.line(f"{name}:{len(carried)} = {head} iter_args({inits}) -> ({types}) : i64 {{")
        else:
            self.line(f"{head} : i64 {{")
        self._indent += 1
        yield loop
        if carried:
            assert loop.yielded is not None, "the body of a loop that carries values calls yield_"
            self._yield(loop.yielded)
        self._indent -= 1
        self.line("} " + _KEEP_LOOP)
        loop.results = [Value(f"{name}#{i}", v.type) for i, v in enumerate(carried)]

    @contextmanager
    def when(self, condition: Value) -> Iterator[None]:
        """``scf.if`` without results."""
        self.line(f"scf.if {condition.name} {{")
        self._indent += 1
        yield
        self._indent -= 1
        self.line("}")

    def choose(
        self,
        condition: Value,
        types: Sequence[str],
        then: Callable[[], Sequence[Value]],
        otherwise: Callable[[], Sequence[Value]],
    ) -> list[Value]:
        """``scf.if`` with results of ``types``."""
        name = self._fresh("").name
        head = (
            f"{name}:{len(types)} = scf.if {condition.name} -> ({', '.join(types)}) {{"
            if types
            else f"scf.if {condition.name} {{"
        )
        self.line(head)
        for position, branch in enumerate((then, otherwise)):
            if position:
                self.line("} else {")
            self._indent += 1
            values = list(branch())
            if types:
                self._yield(values)
            self._indent -= 1
        self.line("}")
        return [Value(f"{name}#{i}", t) for i, t in enumerate(types)]

    # -- internals -----------------------------------------------------------------------------------------------------
    def _fresh(self, type_: str) -> Value:
        self._counter += 1
        return Value(f"%{self._counter}", type_)

    def _entry(self, text: str, type_: str, integer: int | None) -> Value:
        found = self._constants.get((text, type_))
        if found is None:
            found = self._constants[text, type_] = Value(f"%c{len(self._constants)}", type_)
            if integer is not None:
                self._integers[found.name] = integer
        return found

    def _yield(self, values: Sequence[Value]) -> None:
        self.line(f"scf.yield {', '.join(v.name for v in values)} : {', '.join(v.type for v in values)}")

    def _fold(self, op: str, a: Value, b: Value | int, fn: Callable[[int, int], int], neutral: int | None) -> Value:
        x = self._integers.get(a.name)
        y = b if isinstance(b, int) else self._integers.get(b.name)
        if x is not None and y is not None:
            return self.index(fn(x, y))
        if y == neutral and y is not None:
            return a
        if op == "arith.addi" and x == 0 and isinstance(b, Value):
            return b
        if op == "arith.muli" and x == 1 and isinstance(b, Value):
            return b
        if op == "arith.muli" and 0 in (x, y):
            return self.index(0)
        return self.op(op, a, self.index(b) if isinstance(b, int) else b)


def integer_literal(value: int, element: str) -> str:
    """``value`` wrapped into ``element`` as a signed number; ``i1`` spells true and false."""
    if element == "i1":
        return "true" if value else "false"
    bits = int(element[1:])
    return str((value + (1 << (bits - 1))) % (1 << bits) - (1 << (bits - 1)))


def float_literal(value: int | float | str, element: str) -> str:
    """``value`` rounded to nearest even in ``element``, as MLIR's hexadecimal literal (exact for every value)."""
    number = float(value)
    if element == "f64":
        return f"0x{struct.unpack('<Q', struct.pack('<d', number))[0]:016X}"
    if element == "f32":
        return f"0x{float32_bits(number):08X}"
    raise ValueError(f"no literal of type {element}")


def float32_bits(number: float) -> int:
    """The bits of ``number`` rounded to f32; beyond its range an infinity, as a cast gives."""
    try:
        return int(struct.unpack("<I", struct.pack("<f", number))[0])
    except OverflowError:
        return 0xFF800000 if number < 0 else 0x7F800000
