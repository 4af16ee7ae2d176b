"""``PrunedWeight``: a weight with zeros, and the pattern that they make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import floor

from torch import Tensor

from effc.compiler.compress.form import Form
from effc.compiler.ir.calibration import Statistics
from effc.compiler.ir.pattern import Pattern
from effc.compiler.ir.sparsity import LONGEST_GROUP, Sparsity
from effc.runtime.sparse_panels import stored_blocks

#: Blocks by which an output channel that is there is stored, from the best: fewer have fewer indices.
_COLUMNS = (16, 8, 4, 2)


@dataclass(frozen=True, eq=False)
class PrunedWeight(Form):
    """``weight``: ``[out, window…, channels]`` of the parameter's dtype, zeros by ``pattern``. ``sparsity``: what kernels may rely on, of
    the matrix ``[out, positions * channels]``.
    """

    weight: Tensor
    pattern: Pattern
    sparsity: Sparsity

    @staticmethod
    def existing(weight: Tensor, pattern: Pattern) -> PrunedWeight:
        """Of a weight that has these zeros."""
        return PrunedWeight(weight, pattern, sparsity_of(weight, pattern))

    @staticmethod
    def made(weight: Tensor, pattern: Pattern, share: float) -> PrunedWeight:
        """Of a weight pruned to ``share`` zeros: kernels have room for all that any weight of this shape may keep."""
        found = sparsity_of(weight, pattern)
        if found.m:
            return PrunedWeight(weight, pattern, found)
        blocks = weight.numel() // (found.rows * found.columns)
        left = max(floor(blocks * (1 - share) + 0.5), 1)
        return PrunedWeight(weight, pattern, Sparsity(found.rows, found.columns, max(left, found.stored)))

    @property
    def pointwise(self) -> bool:
        """Whether the window, if there is one, has one position: then the parameter has the same order of elements."""
        return all(size == 1 for size in self.weight.shape[1:-1])

    def parts(self) -> Mapping[str, Tensor]:
        out, *window, channels = self.weight.shape
        return {"pruned": self.weight.reshape(out, channels, *window) if self.pointwise else self.weight}

    def met(self, statistics: Statistics) -> Mapping[str, Statistics]:
        return {"pruned": statistics}

    @property
    def kind(self) -> str:
        return f"{self.pattern} in {self.sparsity}"

    def dense(self) -> Tensor:
        return self.weight.movedim(-1, 1).flatten(1).float()


def sparsity_of(weight: Tensor, pattern: Pattern) -> Sparsity:
    """How kernels store ``weight``, ``[out, window…, channels]``, whose zeros are by ``pattern``: N:M with room for N in every group, or
    for more where one has more; output channels in blocks.
    """
    if pattern.kind == "n:m" and pattern.m <= LONGEST_GROUP:
        most = int((weight != 0).unflatten(-1, (-1, pattern.m)).sum(-1).max())
        return Sparsity.of_each(max(most, pattern.n), pattern.m, weight.numel())
    rows, columns = pattern.rows, pattern.columns
    if pattern.kind == "channel":
        columns = next((c for c in _COLUMNS if weight.shape[-1] % c == 0), 1)
    return Sparsity(rows, columns, int(stored_blocks(weight.flatten(1), rows, columns).sum()))
