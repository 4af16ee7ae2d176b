"""What a saved model takes: the tensors' dtypes, sizes and strides as expressions over symbols, and the symbols' ranges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from effc.compiler.ir.errors import InputError
from effc.compiler.ir.expr import Expr, Var, as_expr
from effc.runtime.sizes import Placement, evaluator, placements_of
from effc.runtime.structure import Tree, leaves_of


@dataclass(frozen=True)
class TensorGuard:
    """``mutated``: the model writes into this input, so it cannot be copied into another layout."""

    dtype: str
    sizes: tuple[Expr, ...]
    strides: tuple[Expr, ...]
    mutated: bool


class Interface:
    """``tree``: of ``(args, kwargs)``; ``leaves``: a `TensorGuard`, or the value that the leaf had when the model was saved.

    ``ranges``: smallest and largest value (None: no bound) of each symbol.
    """

    def __init__(
        self, tree: Tree, leaves: Sequence[TensorGuard | Any], ranges: Mapping[str, tuple[int, int | None]]
    ) -> None:
        self.tree, self.leaves, self.ranges = tree, leaves, ranges
        self.symbols = tuple(ranges)
        self.guards = [leaf for leaf in leaves if isinstance(leaf, TensorGuard)]
        self._last: tuple[tuple[int, ...], tuple[Placement, ...]] | None = None
        self._dtypes = [getattr(torch, guard.dtype) for guard in self.guards]
        self._solve = [_solution(e) for guard in self.guards for e in guard.sizes]
        placements = [e for guard in self.guards for e in (*guard.sizes, *guard.strides)]
        self._evaluate = evaluator(placements, self.symbols)

    def tensor_number(self, leaf: int) -> int:
        """The place of a leaf among those that are tensors."""
        return sum(isinstance(before, TensorGuard) for before in self.leaves[:leaf])

    def to_json(self) -> dict[str, Any]:
        leaves = [
            {
                "dtype": g.dtype,
                "sizes": list(map(str, g.sizes)),
                "strides": list(map(str, g.strides)),
                "mutated": g.mutated,
            }
            if isinstance(g, TensorGuard)
            else {"value": g}
            for g in self.leaves
        ]
        return {
            "tree": self.tree,
            "leaves": leaves,
            "ranges": {name: list(bounds) for name, bounds in self.ranges.items()},
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Interface:
        """What ``to_json`` wrote; KeyError, TypeError or ValueError where ``data`` is not that."""
        leaves = [
            leaf["value"]
            if "value" in leaf
            else TensorGuard(
                leaf["dtype"], tuple(map(as_expr, leaf["sizes"])), tuple(map(as_expr, leaf["strides"])), leaf["mutated"]
            )
            for leaf in data["leaves"]
        ]
        return Interface(data["tree"], leaves, {name: (low, high) for name, (low, high) in data["ranges"].items()})

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
        """The tensors of a call, in order, placed as the model expects. InputError says what does not fit."""
        found = self._tensors(leaves_of(self.tree, (args, kwargs), "inputs"))
        symbols = tuple(self._symbols(found)) if self.symbols else ()
        placed = []
        for number, (guard, tensor, (sizes, strides)) in enumerate(
            zip(self.guards, found, self._placements(symbols), strict=True)
        ):
            if tensor.shape != sizes:
                raise InputError(
                    f"tensor {number} of the inputs has shape {list(tensor.shape)}; the model was saved for "
                    f"[{', '.join(map(str, guard.sizes))}], which is {list(sizes)} here"
                )
            same = tensor.stride() == strides
            placed.append(tensor if same else _placed(number, guard, tensor, sizes, strides))
        return placed

    def _placements(self, symbols: tuple[int, ...]) -> tuple[Placement, ...]:
        """Of all tensors; those of the last call are kept."""
        last = self._last  # another thread may replace it meanwhile
        if last is None or last[0] != symbols:
            ranks = [len(guard.sizes) for guard in self.guards]
            last = self._last = symbols, placements_of(self._evaluate(*symbols), ranks)
        return last[1]

    def _tensors(self, given: Sequence[Any]) -> list[torch.Tensor]:
        """The leaves that are tensors; their dtype, device and rank fit, and the others are what they were."""
        found: list[torch.Tensor] = []
        for number, (leaf, value) in enumerate(zip(self.leaves, given, strict=True)):
            if not isinstance(leaf, TensorGuard):
                if isinstance(value, torch.Tensor) or type(value) is not type(leaf) or value != leaf:
                    raise InputError(
                        f"leaf {number} of the inputs is {value!r}; the model was saved for {leaf!r}, and only that"
                    )
                continue
            if not isinstance(value, torch.Tensor):
                raise InputError(f"leaf {number} of the inputs is {type(value).__name__}, where a tensor is expected")
            if value.dtype != self._dtypes[len(found)] or not value.is_cpu or value.ndim != len(leaf.sizes):
                dtype = str(value.dtype).removeprefix("torch.")
                raise InputError(
                    f"leaf {number} of the inputs is {dtype} {list(value.shape)} on {value.device}; the model was saved for "
                    f"{leaf.dtype} [{', '.join(map(str, leaf.sizes))}] on cpu"
                )
            found.append(value)
        return found

    def _symbols(self, tensors: Sequence[torch.Tensor]) -> list[int]:
        """The value of each symbol; ranges hold."""
        sizes = [n for t in tensors for n in t.shape]
        values: dict[str, int] = {}
        for size, solution in zip(sizes, self._solve, strict=True):
            if solution is not None and solution[0] not in values:
                name, factor, offset = solution
                values[name] = (size - offset) // factor
        for name, (low, high) in self.ranges.items():
            if not low <= values[name] <= (values[name] if high is None else high):
                raise InputError(
                    f"size {name} is {values[name]}; the model was saved for {low} to {'any' if high is None else high}"
                )
        return [values[name] for name in self.symbols]


def _solution(size: Expr) -> tuple[str, int, int] | None:
    """Symbol, factor and offset of a size that is ``factor * symbol + offset``."""
    names = size.variables()
    if len(names) != 1:
        return None
    (name,) = names
    factor = size.coefficient(name)
    if factor is None or factor.constant is None or any(not isinstance(a, Var) for m, _ in size.terms for a in m):
        return None
    offset = (size - factor * as_expr(name)).constant
    return None if offset is None else (name, factor.constant, offset)


def solvable(sizes: Sequence[Expr]) -> set[str]:
    """The symbols whose values can be told from these sizes."""
    return {found[0] for found in map(_solution, sizes) if found is not None}


def _placed(
    number: int, guard: TensorGuard, tensor: torch.Tensor, sizes: tuple[int, ...], strides: tuple[int, ...]
) -> torch.Tensor:
    same = all(n == 1 or a == b for n, a, b in zip(sizes, tensor.stride(), strides, strict=True))
    if same or 0 in sizes:
        return tensor
    if guard.mutated:
        raise InputError(
            f"tensor {number} of the inputs has strides {list(tensor.stride())}; the model writes into it and was saved for "
            f"{list(strides)}"
        )
    return torch.empty_strided(sizes, strides, dtype=tensor.dtype).copy_(tensor)
