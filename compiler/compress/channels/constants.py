"""Which channels of a graph's tensors are known to be one number, whatever the input: 0 from weights that are zero, and what follows it.

    %y = convolution(%x, %w, %b, …)      where all of w[c] is 0, channel c of %y is b[c]
    %z = batch norm of %y, relu          a number made of it
    %u = mul(%z, %gate)                  where that is 0, channel c is 0, whatever the gate is

Values are taken as finite. A convolution's padding is 0, so a channel that is another number is not one number behind it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from effc.compiler.compress.channels.coupling import Coupling, is_pointwise
from effc.compiler.compress.channels.removed import along

_aten = torch.ops.aten
#: By class of channels.
Numbers = dict[int, float]


class Constants:
    """Of the tensors of ``coupling``'s graph: numbers of the channels of ``classes``. ``values``: its parameters."""

    def __init__(self, coupling: Coupling, values: Mapping[Node, Tensor], classes: Collection[int]) -> None:
        self.coupling, self.classes = coupling, frozenset(classes)
        self._found: dict[Node, dict[int, Numbers]] = {}
        self._members: dict[Node, dict[int, frozenset[int]]] = {}
        for node, result in coupling.tracks.items():
            if isinstance(result, tuple):
                continue
            members = {dim: self.classes.intersection(coupling.roots(track)) for dim, track in coupling.cut(node)}
            self._members[node] = {dim: found for dim, found in members.items() if found}
            for dim, wanted in self._members[node].items():
                found = _of_parameter(self, values[node], node, dim) if node in values else self._of(node, dim, wanted)
                self._found.setdefault(node, {})[dim] = _rounded(found, node.meta["val"].dtype)

    def at(self, node: Any, dim: int) -> Numbers:
        """The channels along ``dim`` that are one number."""
        return self._found.get(node, {}).get(dim, {})

    def zeros(self, node: Any, dim: int) -> set[int]:
        return {root for root, number in self.at(node, dim).items() if number == 0}

    def places(self, node: Any, root: int) -> list[int]:
        """Along which dimensions there are channels of a class."""
        return [dim for dim, members in self._members.get(node, {}).items() if root in members]

    def _of(self, node: Node, dim: int, wanted: Collection[int]) -> Numbers:
        operation, place = node, 0
        if node.target is operator.getitem:
            operation, place = node.args  # type: ignore[assignment]
        rule = _RULES.get(operation.target)
        if rule is not None:
            found = rule(self, operation, dim, wanted) if place == 0 or operation.target in _PARTS else {}
        else:
            found = _pointwise(self, operation, dim, wanted) if is_pointwise(operation) else {}
        return {root: number for root, number in found.items() if root in wanted}


Rule = Callable[[Constants, Node, int, Collection[int]], Numbers]


def _of_parameter(known: Constants, value: Tensor, node: Node, dim: int) -> Numbers:
    """Of classes all of whose elements are the same."""
    if value.numel() == 0 or value.is_complex():
        return {}
    rows = along(value, dim)
    least, greatest = rows.amin(1).double(), rows.amax(1).double()
    numbers = torch.where(least == greatest, least, torch.nan).tolist()
    track = next(t for d, t in known.coupling.cut(node) if d == dim)
    found: dict[int, set[float]] = {}
    for root, number in zip(known.coupling.roots(track), numbers, strict=True):
        found.setdefault(root, set()).add(number)
    return {root: of.pop() for root, of in found.items() if root in known.classes and len(of) == 1}


def _rounded(numbers: Numbers, dtype: torch.dtype) -> Numbers:
    """As tensors of ``dtype`` hold them; without what is not finite."""
    if not numbers:
        return {}
    values = torch.tensor(list(numbers.values()), dtype=torch.float64).to(dtype).double()
    finite = values.isfinite().tolist()
    return {root: number for root, number, ok in zip(numbers, values.tolist(), finite, strict=True) if ok}


# -- the same elements ----------------------------------------------------------------------------------------------
def _moved(known: Constants, node: Node, dim: int, wanted: Collection[int]) -> Numbers:
    """Where all operands that have the channel agree."""
    found: Numbers = {}
    for root in wanted:
        numbers = {known.at(n, d).get(root) for n in node.all_input_nodes for d in known.places(n, root)}
        if len(numbers) == 1 and (number := numbers.pop()) is not None:
            found[root] = number
    return found


def _summed(known: Constants, node: Node, dim: int, wanted: Collection[int]) -> Numbers:
    """Of how many elements is not looked at."""
    return {root: number for root, number in _moved(known, node, dim, wanted).items() if number == 0}


def _pad(known: Constants, node: Node, dim: int, wanted: Collection[int]) -> Numbers:
    filling = node.args[2] if len(node.args) > 2 else node.kwargs.get("value", 0)
    return {root: number for root, number in _moved(known, node, dim, wanted).items() if number == (filling or 0)}


# -- element by element ---------------------------------------------------------------------------------------------
def _pointwise(known: Constants, node: Node, dim: int, wanted: Collection[int]) -> Numbers:
    """The operation itself, on the channels that all operands know; a product also where one factor is 0."""
    operands = node.all_input_nodes
    if any(not isinstance(n.meta.get("val"), Tensor) for n in operands) or node.target in _SIGNED:
        return {}
    rank = node.meta["val"].dim()
    of = {n: known.at(n, dim - rank + n.meta["val"].dim()) for n in operands}
    found = dict.fromkeys({root for numbers in of.values() for root, number in numbers.items() if number == 0}, 0.0)
    if node.target is not _aten.mul.Tensor:
        found = {}
    shared = [root for root in wanted if root not in found and all(root in numbers for numbers in of.values())]
    if shared:
        columns = {
            n: torch.tensor([numbers[root] for root in shared], dtype=torch.float64).to(n.meta["val"].dtype)
            for n, numbers in of.items()
        }
        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), columns.__getitem__)
        made: Tensor = node.target(*args, **kwargs)  # type: ignore[operator]
        found |= zip(shared, made.double().tolist(), strict=True)
    return found


# -- products -------------------------------------------------------------------------------------------------------
def _product(known: Constants, node: Node, dim: int, wanted: Collection[int]) -> Numbers:
    """``[batch…, rows, sum]`` times ``[batch…, sum, columns]``."""
    if node.kwargs:  # of a bias and the product
        return {}
    *bias, a, b = node.args[:3] if node.target in (_aten.addmm.default, _aten.baddbmm.default) else node.args[:2]
    rank = node.meta["val"].dim()
    left = known.zeros(a, dim) if dim != rank - 1 else set()
    right = known.zeros(b, dim) if dim != rank - 2 else set()
    return _biased(known, left | right, bias[0] if bias else None, dim, rank)


def _convolution(known: Constants, node: Node, dim: int, wanted: Collection[int]) -> Numbers:
    given: Sequence[Any] = node.args
    (x, w, bias), transposed, groups = given[:3], given[6], given[8]
    found = known.zeros(w, 1 if transposed else 0)
    if groups > 1:  # classes are of whole groups
        found |= known.zeros(x, 1)
    return _biased(known, found, bias, 0, 1)


def _biased(known: Constants, zeros: Iterable[int], bias: Any, dim: int, rank: int) -> Numbers:
    """``bias``: a node, broadcast to ``rank`` dimensions, or None."""
    if bias is None:
        return dict.fromkeys(zeros, 0.0)
    numbers = known.at(bias, dim - rank + bias.meta["val"].dim())
    return {root: numbers[root] for root in zeros if root in numbers}


def _attention(known: Constants, node: Node, dim: int, wanted: Collection[int]) -> Numbers:
    """Of heads whose values are 0."""
    return dict.fromkeys(known.zeros(node.args[2], 1), 0.0)


#: Of several results each is a part of the operand.
_PARTS = frozenset({_aten.split.Tensor, _aten.split_with_sizes.default, _aten.unbind.int})
#: What tells 0 from -0: which of them a product with 0 is, is not known.
_SIGNED = frozenset({_aten.copysign.Tensor, _aten.signbit.default, _aten.atan2.default})
_RULES: Mapping[Any, Rule] = {
    **dict.fromkeys(
        (
            *_PARTS,
            _aten.clone.default,
            _aten._to_copy.default,
            _aten.alias.default,
            _aten.detach.default,
            torch.ops.prims.convert_element_type.default,
            _aten.view.default,
            _aten._unsafe_view.default,
            _aten.reshape.default,
            _aten.squeeze.default,
            _aten.squeeze.dim,
            _aten.squeeze.dims,
            _aten.permute.default,
            _aten.transpose.int,
            _aten.t.default,
            _aten.unsqueeze.default,
            _aten.expand.default,
            _aten.select.int,
            _aten.slice.Tensor,
            _aten.cat.default,
            _aten.embedding.default,
            _aten.mean.dim,
            _aten.amax.default,
            _aten.amin.default,
            _aten.max_pool2d_with_indices.default,
            _aten.max_pool3d_with_indices.default,
            _aten._adaptive_avg_pool2d.default,
            _aten._adaptive_avg_pool3d.default,
            _aten.upsample_nearest2d.default,
        ),
        _moved,
    ),
    **dict.fromkeys(
        (
            _aten.sum.dim_IntList,
            _aten.avg_pool2d.default,
            _aten.avg_pool3d.default,
            _aten.upsample_bilinear2d.default,
        ),
        _summed,
    ),
    _aten.constant_pad_nd.default: _pad,
    _aten.hardswish.default: _pointwise,
    **dict.fromkeys((_aten.mm.default, _aten.addmm.default, _aten.bmm.default, _aten.baddbmm.default), _product),
    _aten.convolution.default: _convolution,
    _aten._scaled_dot_product_flash_attention_for_cpu.default: _attention,
}
