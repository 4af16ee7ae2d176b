"""Writes graph IR as text: operations on tensors, with types, maps, locations, and constants kept once.

Constants and sizes depend on nothing but symbols, so they are written ahead of the rest of the function and shared.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence

import torch

from effc.compiler.capture.importer.body import Body
from effc.compiler.capture.importer.types import (
    BITS,
    UNSIGNED,
    Scalar,
    Size,
    Tensor,
    is_empty,
    is_float,
    tensor_type,
)
from effc.compiler.ir.errors import UnsupportedError
from effc.compiler.ir.expr import Call, Expr, Var
from effc.runtime.dtypes import DTYPE_NAMES

#: What a ``linalg.generic`` computes at one point: values of the inputs -> value of the output.
PointFunction = Callable[..., Scalar]


class Builder:
    """Collects the text of one function. ``location`` is the alias that the next operations carry."""

    def __init__(self) -> None:
        self.header: list[str] = []
        self.lines: list[str] = []
        self.declarations: dict[str, str] = {}
        self.location = "unknown"
        self.symbols: set[str] = set()
        self._locations: dict[tuple[str, int], str] = {}
        self.known: dict[str, int | float] = {}  # SSA value of a constant -> the number
        self._constants: dict[tuple[str, str], str] = {}
        self._sizes: dict[Expr, str] = {}
        self._count = 0

    # -- names and places -------------------------------------------------------------------------------------------
    def fresh(self) -> str:
        self._count += 1
        return f"%{self._count}"

    def set_location(self, file: str, line: int) -> None:
        self.location = self._locations.setdefault((file, line), f"#loc{len(self._locations)}")

    def location_aliases(self) -> list[str]:
        return [f'{alias} = loc("{file}":{line}:0)' for (file, line), alias in self._locations.items()]

    def emit(self, text: str) -> str:
        """Write ``%n = text`` and return ``%n``."""
        name = self.fresh()
        self.lines.append(f"    {name} = {text} loc({self.location})")
        return name

    def declare(self, name: str, signature: str) -> None:
        """A private declaration of a libm function."""
        self.declarations[name] = f"  func.func private @{name}{signature}"

    # -- constants and sizes ----------------------------------------------------------------------------------------
    def constant(self, value: int | float | bool, dtype: torch.dtype | None) -> Scalar:
        """A scalar constant of ``dtype`` (None: ``index``); floats are rounded once, integers wrap as torch's do."""
        kind = "index" if dtype is None else DTYPE_NAMES[dtype]
        text = literal(value, kind)
        name = self._constants.get((text, kind))
        if name is None:
            name = f"%c{len(self._constants)}"
            self._constants[text, kind] = name
            self.known[name] = value
            suffix = "" if kind == "i1" else f" : {kind}"
            self.header.append(f"    {name} = arith.constant {text}{suffix} loc(unknown)")
        return Scalar(name, dtype)

    def index(self, size: Size) -> Scalar:
        """A size as a value of type ``index``."""
        if isinstance(size, int):
            return self.constant(size, None)
        return Scalar(self._size(size), None)

    def _size(self, e: Expr) -> str:
        found = self._sizes.get(e)
        if found is not None:
            return found
        for name in e.variables():
            self.symbols.add(name)
        if len(e.terms) == 1 and e.terms[0][1] == 1 and len(e.terms[0][0]) == 1 and isinstance(e.terms[0][0][0], Var):
            return f"%{e.terms[0][0][0].name}"
        operands: dict[str, str] = {}  # SSA value -> name in the map
        text = self._affine(e, operands)
        name = self.fresh()
        self.header.append(
            f"    {name} = affine.apply affine_map<()[{', '.join(operands.values())}] -> ({text})>"
            f"()[{', '.join(operands)}] loc(unknown)"
        )
        self._sizes[e] = name
        return name

    def _affine(self, e: Expr, operands: dict[str, str]) -> str:
        terms = []
        for monomial, coefficient in e.terms:
            factors = [] if coefficient == 1 and monomial else [str(coefficient)]
            for atom in monomial:
                if isinstance(atom, Var):
                    self.symbols.add(atom.name)
                    factors.append(operands.setdefault(f"%{atom.name}", f"s{len(operands)}"))
                elif atom.fn in ("//", "%"):
                    word = "floordiv" if atom.fn == "//" else "mod"
                    factors.append(
                        f"(({self._affine(atom.lhs, operands)}) {word} ({self._affine(atom.rhs, operands)}))"
                    )
                else:
                    factors.append(operands.setdefault(self._extremum(atom), f"s{len(operands)}"))
            terms.append(" * ".join(factors))
        return " + ".join(terms) or "0"

    def _extremum(self, atom: Call) -> str:
        lhs, rhs = (self.index(e if e.constant is None else e.constant).name for e in (atom.lhs, atom.rhs))
        name = self.fresh()
        self.header.append(f"    {name} = arith.{atom.fn}si {lhs}, {rhs} : index loc(unknown)")
        return name

    def dynamic(self, sizes: Sequence[Size]) -> list[str]:
        """SSA names of the sizes that are not static."""
        return [self._size(s) for s in sizes if isinstance(s, Expr)]

    def mixed(self, sizes: Sequence[Size]) -> str:
        """``[%s0, 3]``: the mixed static/dynamic list of tensor ops."""
        return "[" + ", ".join(str(s) if isinstance(s, int) else self._size(s) for s in sizes) + "]"

    # -- tensors ----------------------------------------------------------------------------------------------------
    def empty(self, dtype: torch.dtype, sizes: Sequence[Size]) -> Tensor:
        kind = tensor_type(dtype, sizes)
        name = self.emit(f"tensor.empty({', '.join(self.dynamic(sizes))}) : {kind}")
        return Tensor(name, dtype, tuple(sizes))

    def fill(self, value: int | float | bool | Scalar, dtype: torch.dtype, sizes: Sequence[Size]) -> Tensor:
        scalar = value if isinstance(value, Scalar) else self.constant(value, dtype)
        out = self.empty(dtype, sizes)
        if is_empty(sizes):
            return out
        text = f"linalg.fill ins({scalar.name} : {scalar.type}) outs({out.name} : {out.type}) -> {out.type}"
        return Tensor(self.emit(text), dtype, out.sizes)

    def generic(
        self,
        inputs: Sequence[tuple[Tensor, Sequence[str]]],
        init: Tensor,
        output: Sequence[str],
        loops: Sequence[str],
        function: PointFunction,
        attribute: str = "",
    ) -> Tensor:
        """A ``linalg.generic``: ``inputs`` and ``output`` with their index expressions over ``d0 … dn``.

        ``function(body, *inputs)`` gives the value to yield; with a reduction loop, ``function(body, *inputs, accumulator)``.
        """
        dims = ", ".join(f"d{i}" for i in range(len(loops)))
        maps = ", ".join(f"affine_map<({dims}) -> ({', '.join(m)})>" for m in [*(m for _, m in inputs), output])
        kinds = ", ".join(f'"{k}"' for k in loops)
        tensors = [t for t, _ in inputs]
        ins = ""
        if tensors:
            ins = f"ins({', '.join(t.name for t in tensors)} : {', '.join(t.type for t in tensors)}) "
        body = Body(self)
        scalars = [Scalar(self.fresh(), t.dtype) for t in [*tensors, init]]
        used = scalars if "reduction" in loops else scalars[:-1]
        result = function(body, *used)
        if result.dtype != init.dtype:
            raise AssertionError(f"body yields {result.dtype}, the tensor holds {init.dtype}")
        name = self.fresh()
        extra = f" attrs = {{{attribute}}}" if attribute else ""
        arguments = ", ".join(f"{s.name}: {s.type}" for s in scalars)
        self.lines.append(
            f"    {name} = linalg.generic {{indexing_maps = [{maps}], iterator_types = [{kinds}]}} "
            f"{ins}outs({init.name} : {init.type}){extra} {{\n    ^bb0({arguments}):"
        )
        self.lines.extend(body.lines)
        self.lines.append(f"      linalg.yield {result.name} : {result.type} loc({self.location})")
        self.lines.append(f"    }} -> {init.type} loc({self.location})")
        return Tensor(name, init.dtype, init.sizes)

    def pointwise(
        self,
        inputs: Sequence[Tensor],
        sizes: Sequence[Size],
        dtype: torch.dtype,
        function: PointFunction,
        attribute: str = "",
    ) -> Tensor:
        """``function`` at each point of ``sizes``; inputs broadcast to it from the right, as torch's do."""
        init = self.empty(dtype, sizes)
        if is_empty(sizes):
            return init
        rank = len(sizes)
        located = [(t, broadcast_map(t.sizes, sizes)) for t in inputs]
        return self.generic(located, init, identity(rank), ["parallel"] * rank, function, attribute)

    def reduce(
        self, x: Tensor, dims: Sequence[int], kind: str, dtype: torch.dtype, function: PointFunction | None = None
    ) -> Tensor:
        """Combine over ``dims`` (dropped) in ``dtype``; ``function`` maps an element to the value that is combined.

        ``kind``: ``add mul max min and or xor``. An empty range gives the operation's neutral element.
        """
        kept = [d for d in range(x.rank) if d not in dims]
        sizes = tuple(x.sizes[d] for d in kept)
        init = self.fill(neutral(kind, dtype), dtype, sizes)
        if is_empty(x.sizes) or (not dims and x.dtype == dtype and function is None):
            return init if is_empty(x.sizes) else x
        loops = ["reduction" if d in dims else "parallel" for d in range(x.rank)]
        op = combiner(kind, dtype)

        def combine(body: Body, value: Scalar, accumulator: Scalar) -> Scalar:
            value = body.cast(value, dtype) if function is None else function(body, value)
            return body.binary(op, value, accumulator)

        if not dims:
            return self.pointwise([x], sizes, dtype, function or (lambda body, v: body.cast(v, dtype)))
        return self.generic([(x, identity(x.rank))], init, [f"d{d}" for d in kept], loops, combine)

    def cast(self, x: Tensor, dtype: torch.dtype, attribute: str = "") -> Tensor:
        """Each element converted, as ``Tensor.to`` does."""
        if x.dtype == dtype:
            return x
        return self.pointwise([x], x.sizes, dtype, lambda body, v: body.cast(v, dtype), attribute)


def identity(rank: int) -> list[str]:
    return [f"d{i}" for i in range(rank)]


def broadcast_map(source: Sequence[Size], target: Sequence[Size]) -> list[str]:
    """Index expressions that read ``source`` at a point of ``target``: a size-1 dimension is read at 0."""
    offset = len(target) - len(source)
    return ["0" if s == 1 and target[offset + i] != 1 else f"d{offset + i}" for i, s in enumerate(source)]


def combiner(kind: str, dtype: torch.dtype) -> str:
    """The ``arith`` op that combines two values of ``dtype``; max and min propagate NaN."""
    if kind in ("and", "or", "xor"):
        return f"arith.{kind}i"
    if kind in ("add", "mul"):
        return f"arith.{kind}{'f' if is_float(dtype) else 'i'}"
    if is_float(dtype):
        return f"arith.{kind}imumf"
    return f"arith.{kind}{'ui' if dtype in UNSIGNED else 'si'}"


def neutral(kind: str, dtype: torch.dtype) -> int | float:
    """The value that combining leaves unchanged."""
    if kind == "mul":
        return 1
    if kind in ("max", "min"):
        if is_float(dtype):
            return -math.inf if kind == "max" else math.inf
        info = torch.iinfo(dtype) if dtype != torch.bool else None
        if info is None:
            return kind == "min"
        return info.min if kind == "max" else info.max
    if kind == "and":
        return 1 if dtype == torch.bool else -1
    return 0


def literal(value: int | float | bool, kind: str) -> str:
    """The text of an ``arith.constant`` of MLIR type ``kind``."""
    if kind == "i1":
        return "true" if value else "false"
    if kind[0] == "i":
        if isinstance(value, float) and not value.is_integer():
            raise UnsupportedError(f"the constant {value} as an integer")
        if kind == "index":
            return str(int(value))
        bits = BITS[kind]
        wrapped = int(value) & ((1 << bits) - 1)
        return str(wrapped - (1 << bits) if wrapped >> (bits - 1) else wrapped)
    number = float(value)
    if math.isnan(number) or math.isinf(number) or (kind == "f32" and abs(number) > 3.4028235677973366e38):
        if kind in ("bf16", "f16"):
            bits16 = int(torch.tensor(number).to(torch.bfloat16 if kind == "bf16" else torch.float16).view(torch.int16))
            return f"0x{bits16 & 0xFFFF:04X}"
        if kind == "f32":
            return f"0x{struct.unpack('<I', struct.pack('<f', _saturate(number)))[0]:08X}"
        return f"0x{struct.unpack('<Q', struct.pack('<d', number))[0]:016X}"
    text = repr(number)
    mantissa, e, exponent = text.partition("e")
    return (mantissa if "." in mantissa else mantissa + ".0") + e + exponent


def _saturate(number: float) -> float:
    return math.copysign(math.inf, number) if not math.isnan(number) else number
