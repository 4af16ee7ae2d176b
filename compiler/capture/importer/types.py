"""The importer's values: typed SSA names with symbolic sizes, and the way from torch's metadata to them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch

from effc.compiler.ir.errors import UnsupportedError
from effc.compiler.ir.expr import Expr, const, floordiv, maximum, minimum, mod, product, var
from effc.runtime.dtypes import DTYPE_NAMES

#: A dimension: an int where it is static, else an ``Expr`` over the graph's symbols.
Size = int | Expr

BITS: Mapping[str, int] = {
    "f64": 64,
    "f32": 32,
    "bf16": 16,
    "f16": 16,
    "i64": 64,
    "i32": 32,
    "i16": 16,
    "i8": 8,
    "i1": 1,
}

#: dtypes whose MLIR integer is read without a sign.
UNSIGNED = frozenset({torch.uint8, torch.bool})
LOW_PRECISION = frozenset({torch.bfloat16, torch.float16})


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor-typed SSA value of the graph IR."""

    name: str
    dtype: torch.dtype
    sizes: tuple[Size, ...]

    @property
    def rank(self) -> int:
        return len(self.sizes)

    @property
    def type(self) -> str:
        return tensor_type(self.dtype, self.sizes)


@dataclass(frozen=True, slots=True)
class Scalar:
    """A scalar SSA value in the body of a ``linalg.generic``; ``dtype`` None stands for MLIR's ``index``."""

    name: str
    dtype: torch.dtype | None

    @property
    def type(self) -> str:
        return "index" if self.dtype is None else DTYPE_NAMES[self.dtype]


@dataclass(frozen=True, slots=True)
class Quotient:
    """A symbolic float: the true quotient of two integer expressions (``s0 / 16``, as interpolation scales are)."""

    numerator: Expr
    denominator: Expr


def tensor_type(dtype: torch.dtype, sizes: Sequence[Size]) -> str:
    dims = "".join(f"{s}x" if isinstance(s, int) else "?x" for s in sizes)
    return f"tensor<{dims}{DTYPE_NAMES[dtype]}>"


def is_float(dtype: torch.dtype | None) -> bool:
    return dtype is not None and dtype.is_floating_point


def opmath(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which torch computes and accumulates: float32 for bfloat16 and float16."""
    return torch.float32 if dtype in LOW_PRECISION else dtype


def as_size(value: Any) -> Size:
    """A torch size (int or SymInt) as an int or ``Expr``; UnsupportedError for data-dependent ones."""
    if isinstance(value, int):
        return value
    if isinstance(value, Expr):
        return simplify(value)
    if isinstance(value, torch.SymInt):
        if not value.node.is_symbolic():
            return int(value)
        return simplify(from_sympy(value.node.expr))
    raise UnsupportedError(f"a size of type {type(value).__name__}")


def simplify(value: Expr) -> Size:
    fixed = value.constant
    return value if fixed is None else fixed


def numel(sizes: Sequence[Size]) -> Size:
    if all(isinstance(s, int) for s in sizes):
        return math.prod(s for s in sizes if isinstance(s, int))
    return simplify(product([s if isinstance(s, Expr) else const(s) for s in sizes]))


def is_empty(sizes: Sequence[Size]) -> bool:
    """Whether a tensor of these sizes is known to hold no element."""
    return any(s == 0 for s in sizes if isinstance(s, int))


def from_sympy(e: sympy.Basic) -> Expr:
    """An ``Expr`` equal to torch's sympy expression of a size."""
    if isinstance(e, sympy.Integer):
        return const(int(e))
    if isinstance(e, sympy.Symbol):
        if str(e).startswith("u"):
            raise UnsupportedError(f"size {e} depends on the data")
        return var(str(e))
    args = e.args
    if isinstance(e, sympy.Add):
        total = const(0)
        for a in args:
            total = total + from_sympy(a)
        return total
    if isinstance(e, sympy.Mul):
        return product([from_sympy(a) for a in args])
    if isinstance(e, sympy.Pow) and isinstance(args[1], sympy.Integer) and int(args[1]) >= 0:
        return product([from_sympy(args[0])] * int(args[1]))
    name = type(e).__name__
    if name in ("FloorDiv", "CleanDiv"):
        return floordiv(from_sympy(args[0]), from_sympy(args[1]))
    if name in ("Mod", "PythonMod"):
        return mod(from_sympy(args[0]), from_sympy(args[1]))
    if name == "ModularIndexing":
        return mod(floordiv(from_sympy(args[0]), from_sympy(args[1])), from_sympy(args[2]))
    if name in ("Max", "Min"):
        fold = maximum if name == "Max" else minimum
        total = from_sympy(args[0])
        for a in args[1:]:
            total = fold(total, from_sympy(a))
        return total
    raise UnsupportedError(f"size {e}: effc cannot express {name}")


def as_quotient(value: torch.SymFloat) -> float | Quotient:
    """A symbolic float that is a quotient of sizes; UnsupportedError for any other."""
    if not value.node.is_symbolic():
        return float(value)
    e = value.node.expr
    if type(e).__name__ == "IntTrueDiv":
        return Quotient(from_sympy(e.args[0]), from_sympy(e.args[1]))
    if type(e).__name__ == "ToFloat":
        return Quotient(from_sympy(e.args[0]), const(1))
    raise UnsupportedError(f"the symbolic float {e}")
