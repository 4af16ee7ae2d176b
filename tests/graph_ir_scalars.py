"""The scalar ops of graph IR in torch: ``arith``, ``math``, libm calls, indices, ``effc.check``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch_mlir import ir
from torch_mlir.dialects import arith

from effc.runtime.dtypes import TORCH_DTYPES

DTYPES = {**TORCH_DTYPES, "index": torch.int64}


def read_constant(op: Any) -> torch.Tensor:
    op = op.operation if hasattr(op, "operation") else op
    attribute = op.attributes["value"]
    kind = str(op.results[0].type)
    if kind == "i1":
        return torch.tensor(str(attribute) in ("true", "-1 : i1", "1 : i1"))
    if kind[0] == "i":
        return torch.tensor(ir.IntegerAttr(attribute).value, dtype=DTYPES[kind])
    return torch.tensor(ir.FloatAttr(attribute).value, dtype=torch.float64).to(DTYPES[kind])


def unsigned(x: torch.Tensor) -> torch.Tensor:
    """The unsigned reading of a signless integer of up to 32 bits."""
    if x.dtype == torch.bool:
        return x.to(torch.int64)
    bits = torch.iinfo(x.dtype).bits
    return x.to(torch.int64) & ((1 << bits) - 1)


_RELATIONS: dict[str, Callable[..., torch.Tensor]] = {
    "eq": torch.eq, "ne": torch.ne, "lt": torch.lt, "le": torch.le, "gt": torch.gt, "ge": torch.ge,
}  # fmt: skip


def compare(op: ir.Operation, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    predicate = ir.IntegerAttr(op.attributes["predicate"]).value
    if op.name == "arith.cmpf":
        name = str(arith.CmpFPredicate(predicate))
        if name not in ("oeq", "une", "olt", "ole", "ogt", "oge"):
            raise AssertionError(f"predicate {name}")
        return _RELATIONS[name[1:]](a, b)
    name = str(arith.CmpIPredicate(predicate))
    if name[0] == "u":
        return _RELATIONS[name[1:]](unsigned(a), unsigned(b))
    return _RELATIONS[name if name in ("eq", "ne") else name[1:]](a, b)


def affine_apply(op: ir.Operation, *operands: torch.Tensor) -> torch.Tensor:
    text = str(op.attributes["map"])
    names = re.findall(r"[sd]\d+", text[: text.index("->")])
    env = {n: int(v) for n, v in zip(names, operands, strict=True)}
    expression = text[text.index("->") + 2 :].strip().rstrip(">").replace("floordiv", "//").replace("mod", "%")
    return torch.tensor(eval(expression, env))


def _bool_safe(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda a, b: (
        function(a.to(torch.int8), b.to(torch.int8)).to(torch.bool) if a.dtype == torch.bool else function(a, b)
    )


BINARY: dict[str, Callable[..., torch.Tensor]] = {
    "arith.addf": torch.add, "arith.subf": torch.sub, "arith.mulf": torch.mul, "arith.divf": torch.div,
    "arith.addi": torch.add, "arith.subi": _bool_safe(torch.sub), "arith.muli": torch.mul, "arith.remf": torch.fmod,
    "arith.divsi": lambda a, b: torch.div(a, b, rounding_mode="trunc"),
    "arith.floordivsi": lambda a, b: torch.div(a, b, rounding_mode="floor"), "arith.remsi": torch.fmod,
    "arith.divui": lambda a, b: (unsigned(a) // unsigned(b)).to(a.dtype),
    "arith.remui": lambda a, b: (unsigned(a) % unsigned(b)).to(a.dtype),
    "arith.andi": torch.bitwise_and, "arith.ori": torch.bitwise_or, "arith.xori": torch.bitwise_xor,
    "arith.maximumf": torch.maximum, "arith.minimumf": torch.minimum, "arith.maxnumf": torch.fmax,
    "arith.minnumf": torch.fmin, "arith.maxsi": torch.maximum, "arith.minsi": torch.minimum,
    "arith.maxui": lambda a, b: torch.maximum(unsigned(a), unsigned(b)).to(a.dtype),
    "arith.minui": lambda a, b: torch.minimum(unsigned(a), unsigned(b)).to(a.dtype),
    "arith.shli": torch.bitwise_left_shift, "arith.shrsi": torch.bitwise_right_shift,
    "arith.shrui": lambda a, b: (unsigned(a) >> unsigned(b)).to(a.dtype),
    "math.powf": torch.pow, "math.atan2": torch.atan2, "math.copysign": torch.copysign,
}  # fmt: skip
_SAME_NAME = (
    *("acos", "acosh", "asin", "asinh", "atan", "atanh", "ceil", "cos", "cosh", "erf", "erfc", "exp", "exp2", "expm1"),
    *("floor", "log", "log10", "log1p", "log2", "rsqrt", "sin", "sinh", "sqrt", "tan", "tanh", "trunc"),
)
UNARY: dict[str, Callable[..., torch.Tensor]] = {
    "arith.negf": torch.neg,
    "math.absf": torch.abs,
    "math.absi": torch.abs,
    "math.roundeven": torch.round,
    **{f"math.{name}": getattr(torch, name) for name in _SAME_NAME},
}
LIBM: dict[str, Callable[..., torch.Tensor]] = {
    "lgamma": torch.lgamma, "hypot": torch.hypot, "nextafter": torch.nextafter,
}  # fmt: skip


def scalar(
    op: ir.Operation, operands: list[Any], values: Mapping[ir.Value, Any], axes: Mapping[str, torch.Tensor]
) -> Any:
    """One scalar op, on values that broadcast over the loops."""
    name = op.name
    if name in BINARY:
        a, b = operands
        return BINARY[name](*torch.broadcast_tensors(a, b))
    if name in UNARY:
        return UNARY[name](operands[0])
    if name == "arith.constant":
        return read_constant(op)
    if name in ("arith.cmpf", "arith.cmpi"):
        return compare(op, *operands)
    if name == "arith.select":
        return torch.where(*operands)
    if name in ("arith.extf", "arith.truncf", "arith.sitofp", "arith.fptosi", "arith.trunci", "arith.index_cast"):
        return operands[0].to(DTYPES[str(op.results[0].type)])
    if name == "arith.extsi":
        wide = DTYPES[str(op.results[0].type)]
        return -operands[0].to(wide) if operands[0].dtype == torch.bool else operands[0].to(wide)
    if name in ("arith.extui", "arith.uitofp"):
        return unsigned(operands[0]).to(DTYPES[str(op.results[0].type)])
    if name == "linalg.index":
        return axes[f"d{ir.IntegerAttr(op.attributes['dim']).value}"]
    if name == "tensor.extract":
        x, *places = operands
        return x[tuple(places)] if places else x
    if name == "affine.apply":
        return affine_apply(op, *operands)
    if name == "math.fma":
        a, b, c = operands
        return (a.double() * b.double() + c.double()).to(a.dtype)
    if name == "func.call":
        symbol = ir.FlatSymbolRefAttr(op.attributes["callee"]).value
        function = LIBM.get(symbol) or LIBM[symbol.removesuffix("f")]
        return function(*torch.broadcast_tensors(*operands))
    if name == "effc.check":
        if not bool(operands[0].all()):
            raise IndexError(ir.StringAttr(op.attributes["message"]).value)
        return None
    raise AssertionError(f"no evaluation for {name}")
