"""Rewriting a graph whose channels are fewer: sizes, bounds and groups that operations have written down."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import GraphModule, Node

from effc.compiler.compress.channels.coupling import Coupling, flat
from effc.compiler.compress.channels.tracks import Track, Tracks

_aten = torch.ops.aten
_SIZES = frozenset({_aten.view.default, _aten._unsafe_view.default, _aten.reshape.default, _aten.expand.default})
_SQUEEZES = frozenset({_aten.squeeze.default, _aten.squeeze.dim, _aten.squeeze.dims})
_SPLITS = frozenset({_aten.split.Tensor, _aten.split_with_sizes.default})

#: Along a dimension: whether each channel is left.
Left = Mapping[int, torch.Tensor]


class Slicing:
    """``gone``: the classes of channels that go from the graph that ``coupling`` is of."""

    def __init__(self, coupling: Coupling, gone: Collection[int]) -> None:
        self.coupling, self.gone = coupling, gone

    def left(self, tracks: Tracks) -> Left:
        """What is left of a tensor, of dimensions that lose channels."""
        found = {}
        for track in tracks:
            dim = self.coupling.dims[track]
            if dim is not None:
                left = self._left(track)
                if not bool(left.all()):
                    found[dim] = left
        return found

    def rewrite(self, gm: GraphModule) -> None:
        """Have operations of ``gm`` compute on what is left; its parameters are smaller already."""
        for node in list(gm.graph.nodes):
            if node.op != "call_function" or node not in self.coupling.tracks:
                continue
            result = self.coupling.tracks[node]
            parts = [self.left(tracks) for tracks in (result if isinstance(result, tuple) else (result,))]
            _correct(node, parts, self._of_operand(node))
            if any(parts):
                _evaluate(node)

    def _of_operand(self, node: Node) -> Left:
        first = node.args[0] if node.args else None
        if not isinstance(first, Node) or isinstance(self.coupling.tracks.get(first), tuple):
            return {}
        return self.left(self.coupling.of(first))

    def _left(self, track: Track) -> torch.Tensor:
        return torch.tensor([root not in self.gone for root in self.coupling.roots(track)])


def without_the_last(coupling: Coupling, gone: set[int]) -> set[int]:
    """``gone`` but for one channel of each tensor that would lose all: parts of a weight may be read apart."""
    found = set(gone)
    for result in coupling.tracks.values():
        for track in flat(result):
            if coupling.dims[track] is not None and found.issuperset(roots := coupling.roots(track)):
                found.discard(roots[0])
    return found


def _correct(node: Node, parts: list[Left], operand: Left) -> None:
    """``parts``: what is left of the node's results, ``operand``: of its first operand."""
    given: Sequence[Any] = node.args
    if node.target in _SIZES and parts[0]:
        sizes = list(given[1])
        for dim, left in parts[0].items():
            sizes[dim] = sizes[dim] if sizes[dim] == -1 else int(left.sum())
        node.update_arg(1, sizes)
    elif node.target in _SQUEEZES and operand:  # not of a dimension that has one channel left
        value = given[0].meta["val"]
        asked = given[1] if len(given) > 1 else range(value.dim())
        dims = {d % value.dim() for d in ([asked] if isinstance(asked, int) else asked)}
        node.target = _aten.squeeze.dims
        node.args = (given[0], [d for d in sorted(dims - operand.keys()) if value.shape[d] == 1])
    elif node.target in _SPLITS and operand:
        dim = (given[2] if len(given) > 2 else node.kwargs.get("dim", 0)) % given[0].meta["val"].dim()
        if dim in operand:
            sizes = [_size(part, value, dim) for part, value in zip(parts, node.meta["val"], strict=True)]
            node.target = _aten.split_with_sizes.default
            node.args, node.kwargs = (given[0], sizes, dim), {}
    elif node.target is _aten.slice.Tensor and operand:
        dim = (given[1] if len(given) > 1 else 0) % given[0].meta["val"].dim()
        if dim in operand:
            start, end, _ = slice(*(*given[2:4], None, None)[:2]).indices(len(operand[dim]))
            before, within = int(operand[dim][:start].sum()), int(operand[dim][start:end].sum())
            node.args = (given[0], dim, before, before + within)
    elif node.target is _aten.convolution.default and given[8] != 1 and 1 in operand:
        node.update_arg(8, given[8] * int(operand[1].sum()) // len(operand[1]))


def _size(part: Left, value: torch.Tensor, dim: int) -> int:
    return int(part[dim].sum()) if dim in part else value.shape[dim]


def _evaluate(node: Node) -> None:
    """Its value of the sizes that it has now."""
    args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    before = node.meta["val"]
    first = before[0] if isinstance(before, tuple | list) else before
    assert isinstance(first, FakeTensor), "AOTAutograd traces with fake tensors"
    with first.fake_mode:
        node.meta["val"] = node.target(*args, **kwargs)  # type: ignore[operator]
