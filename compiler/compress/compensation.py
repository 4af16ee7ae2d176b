"""``Compensation``: what the other channels of a weight take up of an error in one, which GPTQ and SparseGPT have in common.

Optimal Brain Surgeon (Hassibi and Stork, "Second Order Derivatives for Network Pruning", NIPS 1992) for one fixed order of channels in all
rows, as GPTQ and SparseGPT made it affordable: what makes up for the error in a channel, among those behind it in the order, is a row of
the Cholesky factor of the inverse of the second moments.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from effc.compiler.compress.inputs import Inputs, by_channel, by_element

#: Added to the second moments, as a share of their mean: that of both papers.
_DAMPING = 0.01
#: Columns after which the rest of the weight is brought up to date, by one product; that of both papers.
BLOCK = 128


@dataclass(frozen=True, eq=False)
class Compensation:
    """``factor``: upper triangular ``[channels, channels]``, the Cholesky factor of the inverse of the second moments (these as shares of
    their mean), its channels in ``order``. Row ``i`` tells how the channels after ``i`` make up for an error in it. ``dead``: bool
    ``[channels]``, in ``order``, those that calibration saw at 0, for which no other makes up.
    """

    factor: Tensor
    order: Tensor
    dead: Tensor

    @staticmethod
    def of(inputs: Inputs, ordered: bool = True) -> Compensation:
        """``ordered``: channels go from the largest second moment to the smallest, else as they are."""
        moment = inputs.moment.double()
        moment = moment / (float(moment.diagonal().mean()) or 1.0)
        diagonal = moment.diagonal()
        order = diagonal.argsort(descending=True) if ordered else torch.arange(len(diagonal))
        damped = moment + torch.diag(torch.where(diagonal > 0, _DAMPING, 1.0))
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped[order][:, order]))
        return Compensation(torch.linalg.cholesky(inverse, upper=True).float(), order, diagonal[order] == 0)

    def sweep(self, rest: Tensor, settle: Callable[[int], Tensor], block: int = BLOCK) -> Tensor:
        """Settle one channel after the other; those still to come make up for what each loses.

        ``rest``: float32 `columns` of a weight, changed on the way. ``settle(i)``: what is left of ``rest[i]``, ``[out * positions]``; it
        may read ``rest`` up to the next multiple of ``block`` behind ``i``, which all earlier channels have changed by then. The result
        is what channels were settled as, in the form of ``rest``.
        """
        found, factor = torch.empty_like(rest), self.factor
        for start in range(0, len(rest), block):
            stop = min(start + block, len(rest))
            errors = torch.empty_like(rest[start:stop])
            for i in range(start, stop):
                found[i] = settle(i)
                error = (rest[i] - found[i]) / factor[i, i]
                rest[i + 1 : stop].addr_(factor[i, i + 1 : stop], error, alpha=-1)
                errors[i - start] = error
            rest[stop:].addmm_(factor[start:stop, stop:].T, errors, alpha=-1)
        return found

    def columns(self, matrix: Tensor) -> Tensor:
        """``[out, in]`` as ``[channels, out * positions]``, channels in order: a channel's elements lie together."""
        return by_channel(matrix, len(self.order)).T[self.order].contiguous()

    def matrix(self, columns: Tensor, out: int) -> Tensor:
        """The inverse of `columns`: ``[out, in]``."""
        rows = torch.empty_like(columns)
        rows[self.order] = columns
        return by_element(rows.T, out)
