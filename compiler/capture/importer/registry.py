"""The table of importable ops: ``OpOverload`` -> the function that writes it, filled by the ``lowers`` decorator of each family."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import _prims_common
from torch.fx import Node

from effc.compiler.capture.importer.builder import Builder
from effc.compiler.capture.importer.types import Quotient, Size, Tensor
from effc.compiler.ir.expr import Expr

Promotion = _prims_common.ELEMENTWISE_TYPE_PROMOTION_KIND


@dataclass(frozen=True, slots=True)
class Op:
    """What a lowering knows of its node: where to write, and the results that torch inferred.

    ``dtypes[i]`` and ``sizes[i]`` describe result *i*; ``used`` holds the results that anything reads.
    """

    b: Builder
    name: str
    dtypes: tuple[torch.dtype, ...]
    results: tuple[tuple[Size, ...], ...]
    used: frozenset[int]
    node: Node

    @property
    def dtype(self) -> torch.dtype:
        return self.dtypes[0]

    @property
    def sizes(self) -> tuple[Size, ...]:
        return self.results[0]


#: ``lowering(op, *args, **kwargs)`` with nodes replaced by ``Tensor``, ``Expr`` or ``Quotient``; returns the value or values.
Lowering = Callable[..., Any]

LOWERINGS: dict[Any, Lowering] = {}


def lowers(*names: str) -> Callable[[Lowering], Lowering]:
    """Register a lowering for overloads, named ``aten.add.Tensor``; a name that this torch lacks is skipped."""

    def register(function: Lowering) -> Lowering:
        for name in names:
            overload = find(name)
            if overload is not None:
                LOWERINGS[overload] = function
        return function

    return register


def find(name: str) -> Any:
    """The overload of that name, or None where this torch has none."""
    namespace, packet, overload = name.split(".")
    found = getattr(getattr(torch.ops, namespace), packet, None)
    return None if found is None else getattr(found, overload, None)


def promote(args: Sequence[Any], kind: Any = Promotion.DEFAULT) -> tuple[torch.dtype, torch.dtype]:
    """(computation dtype, result dtype) of a pointwise op by torch's own rules."""
    return _promote(tuple(_key(a) for a in args if a is not None), kind)


def _key(a: Any) -> tuple[torch.dtype, bool] | type:
    if isinstance(a, Tensor):
        return (a.dtype, a.rank > 0)
    if isinstance(a, Expr):
        return int
    return float if isinstance(a, Quotient) else type(a)


@lru_cache(maxsize=4096)
def _promote(keys: tuple[tuple[torch.dtype, bool] | type, ...], kind: Any) -> tuple[torch.dtype, torch.dtype]:
    args = [
        torch.empty((1,) if k[1] else (), dtype=k[0], device="meta") if isinstance(k, tuple) else k(1) for k in keys
    ]
    computation, result = _prims_common.elementwise_dtypes(*args, type_promotion_kind=kind)
    return computation, result
