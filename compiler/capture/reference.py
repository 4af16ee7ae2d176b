"""Runs the nodes of a region by ATen, as they are or in float64: what ``check=True`` and the tests compare with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.fx import Node, map_arg
from torch.utils._pytree import tree_map

from effc.compiler.capture.importer.region import Region
from effc.compiler.capture.noise import rounded
from effc.compiler.capture.partition import Group
from effc.compiler.capture.wide_attention import WIDE


def evaluate(
    group: Group,
    region: Region,
    symbols: Sequence[int],
    tensors: Sequence[torch.Tensor],
    wide: bool = False,
    noise: torch.Generator | None = None,
) -> list[torch.Tensor]:
    """Values of ``region.outputs``, those of mutations included; a mutation also writes its input.

    ``wide``: every floating dtype is float64, also where the graph converts to another. ``noise``: and every op has random rounding
    errors (``noise.py``). The caller passes copies of inputs that it wants to keep.
    """
    values: dict[Node, Any] = {n: _widen(t) if wide else t for n, t in zip(region.inputs, tensors, strict=True)}
    named = dict(zip(region.symbols, symbols, strict=True))

    def value(node: Node) -> Any:
        return values[node] if node in values else _number(node, named)

    for node in group.nodes:
        args, kwargs = map_arg((node.args, dict(node.kwargs)), value)
        if wide:
            args, kwargs = tree_map(_wide_dtype, (args, kwargs))
        # kernels may order dims as ATen does not, and then a view is none
        target = torch.ops.aten.reshape.default if node.target is torch.ops.aten.view.default else node.target
        target = WIDE.get(target, target) if wide else target
        assert callable(target)
        values[node] = rounded(node, target, args, kwargs, noise) if noise else target(*args, **kwargs)
    return [values[n] for n in region.outputs]


def _widen(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().double() if tensor.is_floating_point() else tensor.detach()


def _wide_dtype(value: Any) -> Any:
    return torch.float64 if isinstance(value, torch.dtype) and value.is_floating_point else value


def _number(node: Node, symbols: Mapping[str, int]) -> Any:
    """The value of a symbolic number at these sizes."""
    value = node.meta["val"]
    if not isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
        return value
    expression = value.node.expr
    known = {s: symbols[s.name] for s in expression.free_symbols if s.name in symbols}
    found = expression.xreplace(known)
    return (
        int(found)
        if isinstance(value, torch.SymInt)
        else float(found)
        if isinstance(value, torch.SymFloat)
        else bool(found)
    )
