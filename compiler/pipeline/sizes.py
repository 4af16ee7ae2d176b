"""From SSA values of type ``index`` and ``?`` dimensions back to ``Expr`` over the region's symbols."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from torch_mlir import ir

from effc.compiler.ir.errors import LoweringError
from effc.compiler.ir.expr import Expr, as_expr, const, floordiv, maximum, minimum, mod, parse

DYNAMIC: int = ir.ShapedType.get_dynamic_size()

_BINARY: Mapping[str, Callable[..., Expr]] = {
    "arith.addi": lambda a, b: a + b,
    "arith.subi": lambda a, b: a - b,
    "arith.muli": lambda a, b: a * b,
    "arith.floordivsi": floordiv,
    "arith.divui": floordiv,
    "arith.ceildivsi": lambda a, b: floordiv(a + b - 1, b),
    "arith.remui": mod,
    "arith.maxsi": maximum,
    "arith.minsi": minimum,
}
_PASS_THROUGH = ("arith.index_cast", "arith.index_castui", "arith.extsi")


@lru_cache(maxsize=4096)
def affine_expr(text: str) -> Expr:
    """An affine expression's text (``d0 * 2 + d1 floordiv 4``) as an ``Expr``."""
    return parse(re.sub(r"ceildiv", "@", text).replace("floordiv", "//").replace(" mod ", " % "))


class Sizes:
    """Knows the ``Expr`` of each index value and the sizes of each tensor value of one function."""

    def __init__(self) -> None:
        self._index: dict[ir.Value, Expr] = {}
        self._shape: dict[ir.Value, tuple[Expr, ...]] = {}

    def define_index(self, value: ir.Value, expr: Expr) -> None:
        self._index[value] = expr

    def define_shape(self, value: ir.Value, sizes: tuple[Expr, ...]) -> None:
        self._shape[value] = sizes

    def shape(self, value: ir.Value) -> tuple[Expr, ...]:
        """Sizes of a tensor value that was read already."""
        return self._shape[value]

    def index_or_none(self, value: ir.Value) -> Expr | None:
        """The expression of an integer value, or None where it depends on data."""
        if value not in self._index:
            found = self._derive(value)
            if found is None:
                return None
            self._index[value] = found
        return self._index[value]

    def index(self, value: ir.Value) -> Expr:
        found = self.index_or_none(value)
        if found is None:
            raise LoweringError(f"a size depends on data: {value}")
        return found

    def _derive(self, value: ir.Value) -> Expr | None:
        owner = value.owner
        if isinstance(owner, ir.Block):
            return None
        name = owner.name
        if name == "arith.constant":
            attribute = owner.attributes["value"]
            return const(attribute.value) if isinstance(attribute, ir.IntegerAttr) else None
        if name == "tensor.dim":
            axis = self.index(owner.operands[1]).constant
            return None if axis is None else self._shape[owner.operands[0]][axis]
        args = [self.index_or_none(v) for v in owner.operands]
        if any(a is None for a in args):
            return None
        known = [a for a in args if a is not None]
        if name in _BINARY:
            return _BINARY[name](*known)
        if name in _PASS_THROUGH:
            return known[0]
        if name == "affine.apply":
            amap = ir.AffineMapAttr(owner.attributes["map"]).value
            names = [f"d{i}" for i in range(amap.n_dims)] + [f"s{i}" for i in range(amap.n_symbols)]
            return apply_map(str(amap.results[0]), dict(zip(names, known, strict=True)))
        return None

    def mixed(self, static: Any, dynamic: Any) -> tuple[Expr, ...]:
        """A static/dynamic list pair, as ``tensor.extract_slice`` and its kin hold them."""
        values = iter(dynamic)
        return tuple(self.index(next(values)) if int(s) == DYNAMIC else const(int(s)) for s in static)


def apply_map(text: str, values: dict[str, Expr]) -> Expr:
    """One result of an affine map, ``ceildiv`` included, over the given dimensions and symbols."""
    if "ceildiv" in text:
        # a ceildiv b == (a + b - 1) floordiv b; MLIR prints it only at the top level of the sizes that the importer writes
        lhs, rhs = text.rsplit(" ceildiv ", 1)
        a, b = as_expr(affine_expr(lhs.strip("()"))), affine_expr(rhs)
        return floordiv(a + b - 1, b).substitute(values)
    return affine_expr(text).substitute(values)
