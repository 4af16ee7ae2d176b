"""Finding the weights of an ATen graph that can be stored in another form, and the activations that they meet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.fx import Node

from effc.compiler.ir.compression import Compression

_aten = torch.ops.aten
_RESHAPES = frozenset({_aten.view.default, _aten._unsafe_view.default, _aten.reshape.default})
CASTS = frozenset({torch.ops.prims.convert_element_type.default, _aten._to_copy.default})
_TRANSPOSES = frozenset({_aten.t.default, _aten.permute.default, _aten.transpose.int})
#: Products of matrices -> position of the activation [rows, sum], of the weight [sum, out].
_PRODUCTS: Mapping[Any, tuple[int, int]] = {_aten.mm.default: (0, 1), _aten.addmm.default: (1, 2)}

#: Fewer elements than this bring nothing.
_LEAST_ELEMENTS = 1024

Kind = Literal["linear", "convolution", "embedding"]


@dataclass(frozen=True)
class Use:
    """``node`` reads a weight; ``place``: the position of the argument that meets it there."""

    node: Node
    kind: Kind
    place: int

    @property
    def activation(self) -> Node:
        """What meets the weight (of an embedding the indices), now: earlier rewrites may have replaced it."""
        found = self.node.args[self.place]
        assert isinstance(found, Node), "a weight meets a tensor"
        return found

    @property
    def channels(self) -> int:
        """The dimension of that activation's channels."""
        return 1 if self.kind == "convolution" else self.activation.meta["val"].dim() - 1


@dataclass(frozen=True)
class WeightSite:
    """A parameter that contractions and embeddings alone read. ``read``: the node that they meet, which is the parameter, or its only
    reader, a permutation by ``order`` that leaves the output channels first (a convolution's weight that lies as kernels read it).
    ``out``: the dimension of output channels there, 0 or 1.
    """

    name: str
    param: Node
    out: int
    uses: tuple[Use, ...]
    read: Node
    order: tuple[int, ...]

    @property
    def width(self) -> int:
        """Elements of the sum."""
        shape = self.read.meta["val"].shape
        return int(shape.numel() // shape[self.out])

    @property
    def rows(self) -> int:
        """Output channels."""
        return int(self.read.meta["val"].shape[self.out])

    @property
    def axes(self) -> tuple[int, ...]:
        """The parameter's dimensions in the order ``[out, channels, window…]``, of which ``channels`` meets those of an activation (and of
        an embedding holds what it makes).
        """
        return (self.order[self.out], self.order[1 - self.out], *self.order[2:])

    @property
    def kinds(self) -> frozenset[Kind]:
        return frozenset(use.kind for use in self.uses)

    @property
    def in_groups(self) -> bool:
        """Whether a convolution divides its channels."""
        return any(use.kind == "convolution" and use.node.args[8] != 1 for use in self.uses)

    def by_channels(self, weight: torch.Tensor) -> torch.Tensor:
        """``weight`` as float32 [out, channels, window…]."""
        return weight.detach().permute(self.axes).float()

    def matrix(self, weight: torch.Tensor) -> torch.Tensor:
        """``weight`` as float32 [out, sum]."""
        return self.by_channels(weight).flatten(1)

    def tensor(self, matrix: torch.Tensor) -> torch.Tensor:
        """What ``matrix`` makes [out, sum], in the shape and dtype of ``read``."""
        value = self.read.meta["val"]
        rows = [value.shape[self.out], *(s for d, s in enumerate(value.shape) if d != self.out)]
        return matrix.reshape(rows).movedim(0, self.out).to(value.dtype)


def find_sites(params: Mapping[Node, str]) -> tuple[list[WeightSite], dict[str, str]]:
    """The sites among ``params`` (parameter -> name), and why others of two dimensions and more are none."""
    sites, refused = [], {}
    for param, name in params.items():
        value = param.meta["val"]
        if not value.is_floating_point() or value.dim() < 2 or any(not isinstance(s, int) for s in value.shape):
            continue
        read, order = _reordered(param)
        try:
            found = list(_uses(read, value.dim() == 2, False))
        except _NoSiteError as reason:
            refused[name] = str(reason)
            continue
        outs = {out for _, out in found}
        if len(outs) == 1:
            sites.append(WeightSite(name, param, outs.pop(), tuple(use for use, _ in found), read, order))
        elif outs:
            refused[name] = "its output channels are the rows for one operation and the columns for another"
    return sites, refused


def root_of(activation: Node, width: int) -> Node:
    """The activation before reshapes that leave its last dimension, ``width`` elements, as it is."""
    while activation.target in _RESHAPES:
        source = activation.args[0]
        if not isinstance(source, Node) or not _last_is(source, width) or not _last_is(activation, width):
            break
        activation = source
    return activation


def left_out(site: WeightSite, options: Compression) -> str:
    """Why ``options`` have the site's weight stay, whatever they make of others, or ``""``."""
    if options.skips(site.name):
        return "option 'skip' names it"
    if site.rows * site.width < _LEAST_ELEMENTS:
        return f"it has fewer than {_LEAST_ELEMENTS} elements"
    return ""


class _NoSiteError(Exception):
    """Why a parameter is no site."""


def _reordered(param: Node) -> tuple[Node, tuple[int, ...]]:
    """What is read of a parameter, and the order of its dimensions there: its own, or that of the permutation that alone reads it."""
    rank, readers = param.meta["val"].dim(), list(param.users)
    if rank > 2 and len(readers) == 1 and readers[0].target is _aten.permute.default:
        order = tuple(int(d) % rank for d in readers[0].args[1])  # type: ignore[union-attr,arg-type]
        if order[0] == 0:
            return readers[0], order
    return param, tuple(range(rank))


def _uses(node: Node, matrix: bool, turned: bool) -> Iterator[tuple[Use, int]]:
    """What reads a parameter through casts and transpositions, and the parameter's dimension of output channels there."""
    for user in node.users:
        if user.target in CASTS:
            if not user.meta["val"].is_floating_point():
                raise _NoSiteError(f"it is converted to {user.meta['val'].dtype}")
            yield from _uses(user, matrix, turned)
        elif user.target in _TRANSPOSES and matrix and _swaps(user):
            yield from _uses(user, matrix, not turned)
        else:
            yield _use(user, node, turned)


def _use(user: Node, weight: Node, turned: bool) -> tuple[Use, int]:
    target = user.target
    if target in _PRODUCTS:
        activation, place = _PRODUCTS[target]
        other = user.args[activation]
        if user.kwargs:
            raise _NoSiteError(f"{target} multiplies what it makes of it, or its bias, by a number")
        if user.args[place] is weight and other is not weight and isinstance(other, Node):
            return Use(user, "linear", activation), 0 if turned else 1
    elif target is _aten.convolution.default:
        x = user.args[0]
        if user.args[1] is weight and not turned and not user.args[6] and isinstance(x, Node) and x is not weight:
            return Use(user, "convolution", 0), 0
    elif target is _aten.embedding.default and user.args[0] is weight and not turned:
        return Use(user, "embedding", 1), 0
    raise _NoSiteError(f"{target} reads it, which is no linear layer, convolution or embedding")


def _swaps(node: Node) -> bool:
    """Whether the node exchanges the two dimensions of its matrix."""
    if node.target is _aten.t.default:
        return True
    if node.target is _aten.permute.default:
        return list(node.args[1]) in ([1, 0], [-1, 0], [1, -2], [-1, -2])  # type: ignore[arg-type]
    return {int(d) % 2 for d in node.args[1:3]} == {0, 1}  # type: ignore[arg-type]


def _last_is(node: Node, width: int) -> bool:
    shape = node.meta["val"].shape
    return len(shape) > 0 and isinstance(shape[-1], int) and shape[-1] == width
