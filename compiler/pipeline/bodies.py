"""Reading the scalar bodies of ``linalg.generic`` into ``Body``, with affine indices kept as ``Expr``."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch_mlir import ir

from effc.compiler.ir.errors import LoweringError
from effc.compiler.ir.expr import Expr, const, var
from effc.compiler.pipeline.graph import Body, BodyInstr, Tensor
from effc.compiler.pipeline.sizes import Sizes

_CMPF = (
    "false",
    "oeq",
    "ogt",
    "oge",
    "olt",
    "ole",
    "one",
    "ord",
    "ueq",
    "ugt",
    "uge",
    "ult",
    "ule",
    "une",
    "uno",
    "true",
)
_CMPI = ("eq", "ne", "slt", "sle", "sgt", "sge", "ult", "ule", "ugt", "uge")
_AFFINE: dict[str, Callable[[Expr, Expr], Expr]] = {
    "arith.addi": lambda a, b: a + b,
    "arith.subi": lambda a, b: a - b,
    "arith.muli": lambda a, b: a * b,
}
_REDUCE = {
    "arith.addf": "add", "arith.addi": "add", "arith.mulf": "mul", "arith.muli": "mul",
    "arith.maximumf": "max", "arith.maxsi": "max", "arith.maxui": "umax",
    "arith.minimumf": "min", "arith.minsi": "min", "arith.minui": "umin",
    "arith.andi": "and", "arith.ori": "or", "arith.xori": "xor",
}  # fmt: skip
_SIGNED_BITS = {"i8": 8, "i16": 16, "i32": 32, "i64": 64}


def identity_of(kind: str, dtype: str) -> tuple[Any, ...]:
    """The values that leave a reduction of ``kind`` unchanged (several spellings of one value)."""
    floating = dtype.startswith(("f", "bf"))
    bits = _SIGNED_BITS.get(dtype, 1)
    match kind:
        case "add" | "or" | "xor" | "umax":
            return (0, 0.0, False)
        case "mul":
            return (1, 1.0)
        case "and" | "umin":
            return (-1, 1, True)
        case "max":
            return ("-inf",) if floating else (-(1 << (bits - 1)),)
        case "min":
            return ("inf",) if floating else ((1 << (bits - 1)) - 1,)
    raise LoweringError(f"no identity is known for a reduction of kind {kind}")


def split_reduction(body: Body, where: str) -> tuple[Body, tuple[str, ...]]:
    """``combine(accumulator, value)`` → the body that yields ``value``, and the reductions' kinds."""
    yields: list[int] = []
    kinds: list[str] = []
    for number, position in enumerate(body.yields):
        combine = body.instrs[position]
        accumulators = [
            a for a in combine.args if body.instrs[a].op == "accumulator" and body.instrs[a].get("number") == number
        ]
        if combine.op not in _REDUCE or len(accumulators) != 1:
            raise LoweringError(f"a reduction whose body is not one combining op ({combine.op}), at {where}")
        value = next(a for a in combine.args if a != accumulators[0])
        yields.append(value)
        kinds.append(_REDUCE[combine.op])
    return Body(body.instrs, tuple(yields)), tuple(kinds)


class BodyReader:
    """Turns scalar MLIR into ``Body``; ``tensor_of`` finds the tensors that ``tensor.extract`` reads."""

    def __init__(self, sizes: Sizes, tensor_of: Callable[[ir.Value], Tensor]) -> None:
        self.sizes = sizes
        self.tensor_of = tensor_of

    def constant(self, attribute: ir.Attribute) -> Body:
        emit = _Emitter(self)
        return emit.finish([emit.constant(attribute)])

    def scalar(self, value: ir.Value) -> Body:
        emit = _Emitter(self)
        return emit.finish([emit.position(value)])

    def product(self, dtypes: list[str], dtype: str) -> Body:
        """The body of a contraction: both operands widened to the accumulator's type, and multiplied."""
        instrs: list[BodyInstr] = []
        factors: list[int] = []
        for number, source in enumerate(dtypes):
            instrs.append(BodyInstr("operand", (), source, (("number", number),)))
            if source != dtype:
                op = "arith.extf" if dtype.startswith("f") else "arith.extsi"
                instrs.append(BodyInstr(op, (len(instrs) - 1,), dtype))
            factors.append(len(instrs) - 1)
        instrs.append(BodyInstr("arith.mulf" if dtype.startswith("f") else "arith.muli", tuple(factors), dtype))
        return Body(tuple(instrs), (len(instrs) - 1,))

    def generic(self, op: ir.Operation, inputs: int) -> tuple[Body, list[Tensor], bool]:
        """A generic's body, the tensors that it captures, and whether it reads its init."""
        block = op.regions[0].blocks[0]
        emit = _Emitter(self)
        for i, argument in enumerate(block.arguments):
            name, number = ("operand", i) if i < inputs else ("accumulator", i - inputs)
            emit.bind(argument, BodyInstr(name, (), str(argument.type), (("number", number),)))
        yields: list[int] = []
        for inner in block.operations:
            if inner.operation.name == "linalg.yield":
                yields = [emit.position(v) for v in inner.operation.operands]
            else:
                emit.read(inner.operation)
        body = emit.finish(yields)
        return body, emit.captured, any(body.instrs[i].op == "accumulator" for i in body.needed())


class _Emitter:
    def __init__(self, reader: BodyReader) -> None:
        self.reader = reader
        self.instrs: list[BodyInstr] = []
        self.captured: list[Tensor] = []
        self.positions: dict[ir.Value, int] = {}
        self.exprs: dict[int, Expr] = {}  # position → its affine value

    def finish(self, yields: list[int]) -> Body:
        return Body(tuple(self.instrs), tuple(yields))

    def bind(self, value: ir.Value, instr: BodyInstr) -> None:
        self.positions[value] = self._add(instr)

    def position(self, value: ir.Value) -> int:
        """Where a scalar is computed; one from outside the body is computed anew inside."""
        if value not in self.positions:
            expr = self.reader.sizes.index_or_none(value) if not isinstance(value.type, ir.FloatType) else None
            owner = value.owner
            if expr is not None and not (not isinstance(owner, ir.Block) and owner.name == "arith.constant"):
                self.positions[value] = self._index(expr, value.type)
            elif isinstance(owner, ir.Block):
                raise LoweringError(f"a scalar from outside a body that is no symbol: {value}")
            else:
                self.read(owner)
        return self.positions[value]

    def read(self, op: ir.Operation) -> None:
        name = op.name
        if name == "arith.constant":
            self.positions[op.results[0]] = self.constant(op.attributes["value"])
            return
        if name == "linalg.index":
            self.positions[op.results[0]] = self._index(
                var(f"d{ir.IntegerAttr(op.attributes['dim']).value}"), op.results[0].type
            )
            return
        if name == "tensor.extract":
            tensor = self.reader.tensor_of(op.operands[0])
            if tensor not in self.captured:
                self.captured.append(tensor)
            args = tuple(self.position(v) for v in list(op.operands)[1:])
            number = self.captured.index(tensor)
            indices = tuple(self.exprs.get(a) for a in args)
            self.bind(
                op.results[0], BodyInstr("extract", args, tensor.dtype, (("number", number), ("indices", indices)))
            )
            return
        args = tuple(self.position(v) for v in op.operands)
        if name == "effc.check":
            self._add(BodyInstr("check", args, "", (("message", ir.StringAttr(op.attributes["message"]).value),)))
            return
        if name in ("arith.index_cast", "arith.index_castui"):
            self._cast_index(op, args[0], signed=name == "arith.index_cast")
            return
        dtype = _dtype(op.results[0].type)
        if all(a in self.exprs for a in args) and name in _AFFINE and dtype == "i64":
            self.positions[op.results[0]] = self._index(
                _AFFINE[name](self.exprs[args[0]], self.exprs[args[1]]), op.results[0].type
            )
            return
        attributes: tuple[tuple[str, Any], ...] = ()
        if name == "arith.cmpf":
            attributes = (("predicate", _CMPF[ir.IntegerAttr(op.attributes["predicate"]).value]),)
        elif name == "arith.cmpi":
            attributes = (("predicate", _CMPI[ir.IntegerAttr(op.attributes["predicate"]).value]),)
        elif name == "func.call":
            name = f"libm.{ir.FlatSymbolRefAttr(op.attributes['callee']).value}"
        self.bind(op.results[0], BodyInstr(name, args, dtype, attributes))

    def constant(self, attribute: ir.Attribute) -> int:
        if isinstance(attribute, ir.FloatAttr):
            value: Any = attribute.value
            if math.isnan(value) or math.isinf(value):
                value = "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
        else:
            value = int(attribute.value)
        position = self._add(BodyInstr("constant", (), _dtype(attribute.type), (("value", value),)))
        if isinstance(value, int) and _dtype(attribute.type) == "i64":
            self.exprs[position] = const(value)
        return position

    def _index(self, expr: Expr, kind: ir.Type) -> int:
        position = self._add(BodyInstr("index", (), "i64", (("expr", expr),)))
        self.exprs[position] = expr
        narrow = _dtype(kind)
        if narrow != "i64":
            position = self._add(BodyInstr("arith.trunci", (position,), narrow))
        return position

    def _cast_index(self, op: ir.Operation, arg: int, *, signed: bool) -> None:
        source, target = self.instrs[arg].dtype, _dtype(op.results[0].type)
        if source == target:
            self.positions[op.results[0]] = arg
        elif target == "i64":
            self.bind(op.results[0], BodyInstr("arith.extsi" if signed else "arith.extui", (arg,), "i64"))
        else:
            self.bind(op.results[0], BodyInstr("arith.trunci", (arg,), target))

    def _add(self, instr: BodyInstr) -> int:
        self.instrs.append(instr)
        return len(self.instrs) - 1


def _dtype(kind: ir.Type) -> str:
    return "i64" if isinstance(kind, ir.IndexType) else str(kind)
