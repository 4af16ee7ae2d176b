"""What a kernel should have written: its spec, evaluated by torch on the memory that the kernel read.

Every instruction runs over the whole iteration space at once, in the spec's dtypes or with all floats in float64. The templates
``loops`` and ``contraction`` are defined by their body, a ``block`` by its stages; the others are not repeated (``evaluate`` gives None
for them).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from effc.compiler.capture.noise import moved, moved_sum, moved_terms, sum_eps
from effc.compiler.ir.expr import Expr
from effc.compiler.ir.formats import Format
from effc.compiler.ir.spec import Instr, KernelSpec
from effc.runtime.dtypes import TORCH_DTYPES

#: Points of the iteration space that are evaluated; a larger kernel is not repeated.
_MOST_POINTS = 1 << 24

_BINARY: dict[str, Callable[..., Tensor]] = {
    "arith.addf": operator.add, "arith.addi": operator.add, "arith.subf": operator.sub, "arith.subi": operator.sub,
    "arith.mulf": operator.mul, "arith.muli": operator.mul, "arith.divf": operator.truediv, "arith.remf": torch.fmod,
    "arith.maximumf": torch.maximum, "arith.minimumf": torch.minimum, "arith.maxsi": torch.maximum,
    "arith.minsi": torch.minimum, "arith.andi": torch.bitwise_and, "arith.ori": torch.bitwise_or,
    "arith.xori": torch.bitwise_xor, "arith.shli": torch.bitwise_left_shift, "arith.shrsi": torch.bitwise_right_shift,
    "arith.divsi": lambda a, b: torch.div(a, b, rounding_mode="trunc"), "arith.remsi": torch.fmod,
    "arith.floordivsi": lambda a, b: torch.div(a, b, rounding_mode="floor"), "math.powf": torch.pow,
    "math.atan2": torch.atan2, "math.copysign": torch.copysign, "libm.hypot": torch.hypot,
}  # fmt: skip
_UNARY: dict[str, Callable[..., Tensor]] = {
    "arith.negf": torch.neg, "math.absf": torch.abs, "math.absi": torch.abs, "math.roundeven": torch.round,
    "libm.lgamma": torch.lgamma,
    **{f"math.{name}": getattr(torch, name) for name in (
        "acos", "acosh", "asin", "asinh", "atan", "atanh", "ceil", "cos", "cosh", "erf", "erfc", "exp", "exp2", "expm1",
        "floor", "log", "log10", "log1p", "log2", "rsqrt", "sin", "sinh", "sqrt", "tan", "tanh", "trunc",
    )},
}  # fmt: skip
_CASTS = frozenset(f"arith.{name}" for name in ("extf", "truncf", "sitofp", "fptosi", "extsi", "trunci", "index_cast"))
#: Predicates of ``cmpf`` (ordered; ``une``) and ``cmpi`` (signed).
_RELATIONS: dict[str, Callable[..., Tensor]] = {
    "eq": torch.eq, "ne": torch.ne, "oeq": torch.eq, "une": torch.ne,
    **{f"{sign}{name}": getattr(torch, name) for sign in "os" for name in ("lt", "le", "gt", "ge")},
}  # fmt: skip
_REDUCE: dict[str, Callable[..., Tensor]] = {"add": torch.sum, "max": torch.amax, "min": torch.amin}


#: Instructions whose results need no rounding.
_EXACT = frozenset({
    "arith.remf", "arith.maximumf", "arith.minimumf", "arith.negf", "arith.select", "arith.extf", "math.copysign", "math.absf",
    "math.roundeven", "math.ceil", "math.floor", "math.trunc",
})  # fmt: skip


def _rounds(op: str) -> bool:
    return op.startswith(("arith.", "math.", "libm.")) and op not in _EXACT


class _Unknown(Exception):
    """An instruction that this evaluation does not know."""


def evaluate(
    spec: KernelSpec,
    memory: Sequence[Tensor],
    symbols: Sequence[int],
    wide: bool = False,
    noise: torch.Generator | None = None,
) -> dict[int, Tensor] | None:
    """Operand → its memory (1-D, float64 where ``wide``) after the kernel, for those that it writes; None: not repeated.

    ``noise``: what it reads, and every result, has rounding errors (``noise.py``). ``memory``: of each operand before the call,
    in the operand's dtype; a packed one as its source lies in memory.
    """
    if spec.stages:
        return _stages(spec, memory, symbols, wide, noise)
    values = dict(zip(spec.symbols, symbols, strict=True))
    sizes = [d.size.evaluate(values) for d in spec.dims]
    points = 1
    for size in sizes:
        points *= size
    if spec.template not in ("loops", "contraction") or not 0 < points <= _MOST_POINTS:
        return None
    try:
        return _Evaluation(spec, memory, sizes, values, wide, noise).run()
    except _Unknown:
        return None


def _stages(
    spec: KernelSpec, memory: Sequence[Tensor], symbols: Sequence[int], wide: bool, noise: torch.Generator | None
) -> dict[int, Tensor] | None:
    """``evaluate`` of a block, stage by stage; a kernel's scratch memory holds some lines of an intermediate, here it holds all."""
    values, current = dict(zip(spec.symbols, symbols, strict=True)), list(memory)
    written: dict[int, Tensor] = {}
    for stage in spec.stages:
        for instr in stage.body:
            if instr.op == "store" and spec.operands[instr["operand"]].role == "scratch":
                last = {f"d{i}": d.size.evaluate(values) - 1 for i, d in enumerate(stage.dims)}
                dtype = TORCH_DTYPES[spec.operands[instr["operand"]].dtype]
                current[instr["operand"]] = torch.zeros(instr["address"].evaluate({**values, **last}) + 1, dtype=dtype)
        found = evaluate(stage, current, symbols, wide, noise)
        if found is None:
            return None
        for operand, stored in found.items():
            current[operand] = stored
            if spec.operands[operand].role != "scratch":
                written[operand] = stored
    return written


class _Evaluation:
    """``values[i]`` is the result of instruction i, broadcastable to the iteration space."""

    def __init__(
        self,
        spec: KernelSpec,
        memory: Sequence[Tensor],
        sizes: Sequence[int],
        symbols: dict[str, int],
        wide: bool,
        noise: torch.Generator | None,
    ) -> None:
        self.spec, self.wide, self.sizes, self.noise = spec, wide, tuple(sizes), noise
        self.memory = [self._read(m) for m in memory]
        rank = len(sizes)
        self.summed = [i for i, d in enumerate(spec.dims) if d.kind == "reduction"]
        self.names: dict[str, Any] = dict(symbols)
        for i, size in enumerate(sizes):
            self.names[f"d{i}"] = torch.arange(size).view([-1 if k == i else 1 for k in range(rank)])
        self.values: list[Tensor | None] = []

    def _read(self, memory: Tensor) -> Tensor:
        if not memory.is_floating_point():
            return memory.clone()
        if self.noise:
            return moved(memory, memory.dtype, self.noise)
        return memory.double() if self.wide else memory.clone()

    def run(self) -> dict[int, Tensor]:
        written: dict[int, Tensor] = {}
        for number, instr in enumerate(self.spec.body):
            if instr.op == "store":
                operand = instr["operand"]
                self._store(instr, operand)
                written[operand] = self.memory[operand]
                self.values.append(None)
                continue
            value = self._value(instr)
            if self.noise and value is not None and value.is_floating_point() and _rounds(instr.op):
                value = moved(value, TORCH_DTYPES[instr.dtype], self.noise)
            self.values.append(value)
            if value is not None and not value.is_floating_point():
                self.names[f"v{number}"] = value
        return written

    def _value(self, instr: Instr) -> Tensor | None:
        op, args = instr.op, [self._of(a) for a in instr.args]
        dtype = self._dtype(instr.dtype)
        if op == "load":
            return self._load(instr, args)
        if op == "constant":
            return torch.tensor(float(instr["value"]) if dtype.is_floating_point else instr["value"]).to(dtype)
        if op == "index":
            return torch.as_tensor(self._expr(instr["expr"])).to(dtype)
        if op == "check":
            return None
        if op == "decode":
            format_ = Format.of(instr)
            numbers = torch.tensor([format_.value(code) for code in range(1 << format_.bits)], dtype=dtype)
            return numbers[args[0].long() & ((1 << format_.bits) - 1)]
        if op in ("reduce", "contract"):
            return self._reduced(instr, args, dtype)
        if op in ("arith.cmpf", "arith.cmpi"):
            return self._compare(instr["predicate"], *args)
        if op == "arith.select":
            return torch.where(args[0], args[1], args[2])
        if op == "math.fma":
            return (args[0].double() * args[1].double() + args[2].double()).to(dtype)
        if op in ("arith.uitofp", "arith.extui"):
            if args[0].dtype not in (torch.int8, torch.bool):
                raise _Unknown(op)
            return (args[0].view(torch.uint8) if args[0].dtype == torch.int8 else args[0]).to(dtype)
        if op in _CASTS:
            return args[0].to(dtype)
        if op in _UNARY or op in _BINARY:
            return (_UNARY.get(op) or _BINARY[op])(*args).to(dtype)
        raise _Unknown(op)

    def _of(self, index: int) -> Tensor:
        value = self.values[index]
        assert value is not None
        return value

    def _dtype(self, name: str) -> torch.dtype:
        dtype = TORCH_DTYPES.get(name, torch.float32)
        return torch.float64 if self.wide and dtype.is_floating_point else dtype

    def _expr(self, e: Expr) -> Any:
        def fold(of: Callable[..., Tensor]) -> Callable[[Any, Any], Tensor]:
            return lambda a, b: of(torch.as_tensor(a), torch.as_tensor(b))

        # With builtins: torch may import one of its modules at its first use of an operator.
        return eval(str(e), {"max": fold(torch.maximum), "min": fold(torch.minimum)}, self.names)

    def _load(self, instr: Instr, args: list[Tensor]) -> Tensor:
        memory = self.memory[instr["operand"]]
        at = torch.as_tensor(self._expr(instr["address"])).clamp(0, max(memory.numel() - 1, 0))
        found = memory[at]
        return torch.where(args[0], found, args[1]) if args else found

    def _store(self, instr: Instr, operand: int) -> None:
        """The written points; a store of outer values happens once for all of the reduction dims."""
        at = torch.as_tensor(self._expr(instr["address"]))
        value, at, *mask = torch.broadcast_tensors(self._of(instr.args[0]), at, *(self._of(a) for a in instr.args[1:]))
        kept = mask[0] if mask else torch.ones_like(at, dtype=torch.bool)
        memory = self.memory[operand]
        memory[at[kept]] = value[kept].to(memory.dtype)

    def _reduced(self, instr: Instr, args: list[Tensor], dtype: torch.dtype) -> Tensor:
        kind = "add" if instr.op == "contract" else instr["kind"]
        if kind not in _REDUCE or (instr.op == "reduce" and len(args) > 1):
            raise _Unknown(kind)
        value = _ranked((args[0] * args[1] if instr.op == "contract" else args[0]).to(dtype), len(self.sizes))
        value = value.expand([self.sizes[i] if i in self.summed else n for i, n in enumerate(value.shape)])
        count = math.prod(self.sizes[i] for i in self.summed)
        if self.noise and kind == "add" and dtype.is_floating_point:
            meant = TORCH_DTYPES[instr.dtype]
            eps = sum_eps(meant)
            total = moved_terms(value, count, eps, self.noise).sum(self.summed, keepdim=True)
            return moved_sum(total, count, eps, self.noise)
        return _REDUCE[kind](value, self.summed, keepdim=True).to(dtype)

    def _compare(self, predicate: str, a: Tensor, b: Tensor) -> Tensor:
        if predicate == "uno":
            return a.isnan() | b.isnan()
        if predicate == "ult" and not a.is_floating_point():  # signed, with the highest bits the other way
            low = torch.iinfo(a.dtype).min
            return (a ^ low) < (b ^ low)
        if predicate not in _RELATIONS:
            raise _Unknown(predicate)
        return _RELATIONS[predicate](a, b)


def _ranked(value: Tensor, rank: int) -> Tensor:
    return value.view([1] * (rank - value.ndim) + list(value.shape))
