"""What factors of some ranks lose at least, whoever makes them: of a layer's outputs they leave out what lies beyond so many directions
(Eckart and Young, 1936). It takes the eigenvalues of a matrix of the lesser side at most, and often not even these.
"""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from effc.compiler.compress.inputs import Inputs
from effc.compiler.compress.low_rank.layer import Layer
from effc.compiler.compress.low_rank.ranks import Ranks

#: Added to variances, as a share of the mean one: of fewer rows than channels some are zero.
_DAMPING = 1e-6
#: By what share of the sum of all eigenvalues float32 may have one of them wrong.
_ROUNDING = 1e-5


class Energies:
    """Of what the outputs of ``layer`` consist: squares by direction, of all positions of its window. ``inputs``: what calibration has seen
    (None: the weight alone counts, as it does in groups).
    """

    def __init__(self, layer: Layer, inputs: Inputs | None) -> None:
        self.layer = layer
        width = layer.weight.shape[1]
        known = None if layer.groups > 1 else inputs
        self._groups = [_Group(part.reshape(len(part), width, -1), known) for part in layer.weight.chunk(layer.groups)]

    def least(self, ranks: Ranks, enough: float = math.inf) -> float:
        """The least relative L2 error of outputs by factors of ``ranks``, or less; from ``enough`` on it is not looked at closely."""
        whole = sum(group.squares for group in self._groups)
        if not whole > 0:
            return 0.0
        rough = _share(sum(group.roughly_lost(*self._of(ranks)) for group in self._groups), whole)
        return rough if rough >= enough else _share(sum(g.lost(*self._of(ranks)) for g in self._groups), whole)

    def _of(self, ranks: Ranks) -> tuple[int, int]:
        """Of the inputs and of the outputs of a group."""
        if ranks.kind == "tucker":
            return ranks.sizes[0], ranks.sizes[1]
        return (ranks.sizes[0], ranks.sizes[0]) if not self.layer.windowed else self.layer.sides


class _Group:
    """``weight``: float32 ``[out, in, positions]``. Squares are those of outputs less their mean, which no factors need to lose."""

    def __init__(self, weight: Tensor, inputs: Inputs | None) -> None:
        self.weight = weight
        self.covariance = None if inputs is None else inputs.moment - inputs.mean.outer(inputs.mean)
        self.mean = None if inputs is None else inputs.mean

    @property
    def squares(self) -> float:
        """Of the outputs, their mean with them."""
        found = float(self._by_out.trace())
        if self.mean is not None:
            found += float(torch.einsum("oip,i->op", self.weight, self.mean).square().sum())
        return found

    def lost(self, ins: int, outs: int) -> float:
        """At least, of the squares, by so many directions of the inputs and of the outputs."""
        out, width, _ = self.weight.shape
        sides = ((ins, width, "_ins"), (outs, out, "_outs"))
        cut = sorted((count, kept, name) for kept, count, name in sides if kept < count)
        if ins == outs:  # a product has the same directions on both sides: the lesser one tells
            cut = cut[:1]
        return max((_tail(getattr(self, name), kept) for _, kept, name in cut), default=0.0)

    def roughly_lost(self, ins: int, outs: int) -> float:
        """No more than `lost`: the first directions have at most the root of their number times the root of all squares of energies."""
        whole = float(self._by_out.trace())
        first = math.sqrt(outs) * float(self._by_out.norm())
        return max(whole - first, 0.0) if outs < len(self.weight) else 0.0

    @cached_property
    def _by_out(self) -> Tensor:
        """The covariance of the outputs, summed over positions: ``[out, out]``."""
        met = self.weight if self.covariance is None else torch.einsum("oip,ij->ojp", self.weight, self.covariance)
        return met.flatten(1) @ self.weight.flatten(1).T

    @cached_property
    def _outs(self) -> Tensor:
        found: Tensor = torch.linalg.eigvalsh(self._by_out)
        return found

    @cached_property
    def _ins(self) -> Tensor:
        """Of the squares that white inputs give."""
        rows = self.weight.transpose(1, 2).flatten(0, 1)
        squares = rows.T @ rows
        if self.covariance is not None:
            damping = _DAMPING * float(self.covariance.diagonal().mean()) or 1.0
            root, failed = torch.linalg.cholesky_ex(self.covariance + damping * torch.eye(len(squares)))
            if failed:
                return squares.new_zeros(0)
            squares = root.T @ squares @ root
        found: Tensor = torch.linalg.eigvalsh(squares)
        return found


def _tail(rising: Tensor, kept: int) -> float:
    """What all but the ``kept`` largest of eigenvalues are together, less what rounding may have added."""
    lost = rising.clamp(min=0)[: max(len(rising) - kept, 0)].double().sum() - _ROUNDING * rising.sum().double()
    return max(float(lost), 0.0)


def _share(lost: float, whole: float) -> float:
    return math.sqrt(lost / whole)
