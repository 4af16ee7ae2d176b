"""Structural re-parameterization: convolutions of one input whose results are added become one convolution.

::

    conv3x3(x, v) + conv1x1(x, w) + x * s      →      conv3x3(x, v + pad(w) + diagonal(s))

So the blocks of RepVGG (Ding et al., CVPR 2021), ACNet (Ding et al., ICCV 2019), MobileOne (Vasu et al., CVPR 2023), FastViT's RepMixer
(Vasu et al., ICCV 2023) and UniRepLKNet (Ding et al., CVPR 2024) run as their authors deploy them, from the weights that training left: a
kernel is padded, and spread where its taps lie further apart, to the largest one that is there (`taps`); an identity is a kernel of one
tap; scales of channels and biases go along. The sums are made when the parameters change (`pipeline/prepare.py`), in float32 and float64
alone, as the products of `scales` are.

It is the same function of finite numbers. Where an activation is infinite, branches of opposite signs give NaN, and their sum of kernels
infinity.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.fx.experimental.symbolic_shapes import statically_known_true

from effc.compiler.capture.nodes import drop_unread, made, static_nodes
from effc.compiler.capture.scales import FOLDED_DTYPES, is_plain_convolution, scales_channels
from effc.compiler.capture.source import source_of
from effc.compiler.capture.taps import Taps, diagonal, moved_taps, weight_shape

_aten = torch.ops.aten
_ADD, _SUB, _MUL = _aten.add.Tensor, _aten.sub.Tensor, _aten.mul.Tensor


def merge_branches(graph: Graph, params: Collection[Node], kept: Collection[Node]) -> list[str]:
    """Rewrite ``graph`` in place; ``params``: inputs whose values stay from call to call, ``kept``: those of them that are to be read as
    they are, as codes of quantized weights are anyway. Sentences for the report: what became one, and where.
    """
    kept = {*kept, *(node for node in params if not node.meta["val"].is_floating_point())}
    static = static_nodes(graph, params) - static_nodes(graph, kept, some=True)
    merging = _Merging(graph, static)
    for node in reversed(list(graph.nodes)):
        if node.target in (_ADD, _SUB) and node not in merging.inner and node not in static:
            merging.sum(node)
    drop_unread(graph)
    return merging.notes


@dataclass(frozen=True)
class _Term:
    """``node`` times ``scales``, factors of channels, and -1 where ``negative``: an addend."""

    node: Node
    scales: tuple[Node, ...] = ()
    negative: bool = False


@dataclass
class _Branches:
    """Terms over one input that become a convolution with the window of ``frame``'s; ``taps``: where theirs lie among its own."""

    frame: Node
    terms: list[_Term] = field(default_factory=list)
    taps: list[Taps] = field(default_factory=list)


@dataclass
class _Merging:
    """``static``: what may become a part of a kernel. ``inner``: nodes that are a part of a sum that was seen."""

    graph: Graph
    static: Collection[Node]
    inner: set[Node] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)

    def sum(self, root: Node) -> None:
        """Merge what can be among the terms of a sum."""
        value = root.meta["val"]
        if value.dtype not in FOLDED_DTYPES or value.dim() < 3:
            return
        terms = list(self._terms(_Term(root), root))
        merged = [b for b in self._branches(terms, root) if len(b.terms) > 1]
        if not merged:
            return
        gone = [term for branches in merged for term in branches.terms]
        shifts = [term for term in terms if self._is_factor(term.node, root)]
        rest = [term for term in terms if term not in gone and term not in shifts]
        with self.graph.inserting_before(root):
            result: Node | None = None
            for branches in merged:
                found = self._convolution(branches, shifts if result is None else (), root)
                result = found if result is None else made(self.graph, _ADD, (result, found), root)
            for term in rest:
                addend = reduce(lambda x, s: made(self.graph, _MUL, (x, s), root), term.scales, term.node)
                result = made(self.graph, _SUB if term.negative else _ADD, (result, addend), root)
        assert result is not None
        result.meta["val"] = value  # with its strides
        root.replace_all_uses_with(result)
        for branches in merged:
            convolutions = sum(is_plain_convolution(term.node) for term in branches.terms)
            identity = " and an identity" if convolutions < len(branches.terms) else ""
            what = f"{convolutions} convolution{'s' * (convolutions > 1)}{identity} of one input"
            self.notes.append(f"{source_of(branches.frame)}: {what} became one convolution")

    # -- terms ------------------------------------------------------------------------------------------------------
    def _terms(self, term: _Term, root: Node) -> Iterator[_Term]:
        """The addends that ``term`` consists of; nobody else reads the sums between."""
        node = term.node
        alone = node is root or (len(node.users) == 1 and node not in self.static)
        arguments = node.args if alone and not node.kwargs and self._is_alike(node, root) else ()
        if node.target in (_ADD, _SUB) and arguments and all(self._is_addend(a, root) for a in arguments):
            self.inner.add(node)
            first, second = arguments
            assert isinstance(first, Node), "the op's schema says so"
            yield from self._terms(replace(term, node=first), root)
            if isinstance(second, Node):
                negative = term.negative != (node.target is _SUB)
                yield from self._terms(replace(term, node=second, negative=negative), root)
            return
        if node.target is _MUL and arguments:
            for factor, scale in (arguments, arguments[::-1]):
                if isinstance(factor, Node) and self._is_alike(factor, root) and self._is_factor(scale, root):
                    assert isinstance(scale, Node)
                    self.inner.add(node)
                    yield from self._terms(replace(term, node=factor, scales=(*term.scales, scale)), root)
                    return
        yield term

    def _is_alike(self, node: Any, root: Node) -> bool:
        """Whether it is a tensor of the dtype and the sizes of ``root``."""
        if not isinstance(node, Node):
            return False
        a, b = node.meta["val"], root.meta["val"]
        same = isinstance(a, torch.Tensor) and a.dtype == b.dtype and a.dim() == b.dim()
        return same and all(statically_known_true(x == y) for x, y in zip(a.shape, b.shape, strict=True))

    def _is_addend(self, value: Any, root: Node) -> bool:
        """Whether it is a term, or the 0 that Python's ``sum`` begins with."""
        return self._is_alike(value, root) or self._is_factor(value, root) or (isinstance(value, int) and value == 0)

    def _is_factor(self, node: Any, root: Node) -> bool:
        """Whether it is known before any call, one number for each channel of ``root``."""
        fixed = isinstance(node, Node) and node in self.static and scales_channels(node, root)
        return fixed and node.meta["val"].dtype == root.meta["val"].dtype

    # -- branches ---------------------------------------------------------------------------------------------------
    def _branches(self, terms: Sequence[_Term], root: Node) -> Sequence[_Branches]:
        """Which terms may be one convolution: of one input, with one stride, where the window of one has the taps of all."""
        found = list[_Branches]()
        convolutions = [term for term in terms if self._is_branch(term.node, root)]
        others = [term for term in terms if term not in convolutions and self._is_alike(term.node, root)]
        for term in sorted(convolutions, key=lambda term: -weight_shape(term.node)[2:].numel()):
            if not _join(found, term):
                found.append(_Branches(term.node))
                _join(found, term)
        for term in others:
            _join(found, term)
        return found

    def _is_branch(self, node: Node, root: Node) -> bool:
        """Whether it is a convolution with weights that are known before any call, and nobody else reads its result."""
        if not (is_plain_convolution(node) and self._is_alike(node, root) and len(node.users) == 1):
            return False
        dtype = root.meta["val"].dtype
        fixed = [a for a in node.args[1:3] if isinstance(a, Node)]
        return all(a in self.static and a.meta["val"].dtype == dtype for a in fixed)

    def _convolution(self, branches: _Branches, shifts: Sequence[_Term], root: Node) -> Node:
        """The convolution that ``branches`` are, and ``shifts`` of its channels."""
        total, bias = None, None
        for term, taps in zip(branches.terms, branches.taps, strict=True):
            own: Any = None
            weights: Any = None
            if is_plain_convolution(term.node):
                weights, own = term.node.args[1:3]
            total = self._added(total, self._weights(branches.frame, term, weights, taps), term.negative)
            if own is not None:
                bias = self._added(bias, self._scaled(own, term.scales), term.negative)
        for term in shifts:
            flat = made(self.graph, _aten.reshape.default, (term.node, [-1]), root)
            bias = self._added(bias, self._scaled(flat, term.scales), term.negative)
        frame = branches.frame
        return made(self.graph, _aten.convolution.default, (frame.args[0], total, bias, *frame.args[3:]), frame)

    def _weights(self, frame: Node, term: _Term, weights: Any, taps: Taps) -> Node:
        """The kernel of a term, in the window of ``frame``; ``weights``: None of an identity."""
        target = weight_shape(frame)
        if weights is None:
            ones = made(self.graph, _aten.new_ones.default, (frame.args[1], [target[0]]), frame)
            weights = diagonal(self.graph, self._scaled(ones, term.scales), target)
        else:
            weights = self._scaled(weights, term.scales)
        return moved_taps(self.graph, weights, taps, target[2:])

    def _scaled(self, node: Node, scales: Sequence[Node]) -> Node:
        """``node`` [channels, …] times factors of its channels."""
        for scale in scales:
            shape = [-1, *[1] * (node.meta["val"].dim() - 1)]
            column = made(self.graph, _aten.reshape.default, (scale, shape), node)
            node = made(self.graph, _MUL, (node, column), node)
        return node

    def _added(self, total: Node | None, addend: Node, negative: bool) -> Node:
        if total is None:
            return made(self.graph, _aten.neg.default, (addend,)) if negative else addend
        return made(self.graph, _SUB if negative else _ADD, (total, addend))


def _join(found: Sequence[_Branches], term: _Term) -> bool:
    """Add ``term`` to the first branches whose frame has its taps; whether there are such."""
    for branches in found:
        taps = Taps.within(term.node, branches.frame)
        if taps is not None:
            branches.terms.append(term)
            branches.taps.append(taps)
            return True
    return False
