"""Tucker-2: a window between two factors that mix channels.

``W[o, i, p]`` becomes ``Σ out[o, b] core[b, a, p] in[a, i]`` (Kim et al., "Compression of Deep Convolutional Neural Networks for Fast and
Low Power Mobile Applications", ICLR 2016): first the leading directions of each side's unfolding (HOSVD; De Lathauwer et al., "A
Multilinear Singular Value Decomposition", 2000), then those of either side in what the other keeps, in turn (HOOI; De Lathauwer et al., "On
the Best Rank-1 and Rank-(R1, …, RN) Approximation", 2000).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: Rounds of HOOI: later ones change the error by less than a thousandth.
_ROUNDS = 3


@dataclass(frozen=True, eq=False)
class Tucker:
    """Of ``white``, float64 ``[out, in, positions]``. ``outs``, ``ins``: its sides' directions, orthonormal columns, the first the most."""

    white: Tensor
    outs: Tensor
    ins: Tensor

    @staticmethod
    def of(white: Tensor) -> Tucker:
        return Tucker(white, _directions(white), _directions(white.transpose(0, 1)))

    def errors(self) -> Tensor:
        """Squared error by the ranks ``[in, out]``, before HOOI lowers it: ``[in + 1, out + 1]``. Both bases are orthonormal, so it is what
        the core leaves of the squares.
        """
        core = torch.einsum("oip,ob,ia->abp", self.white, self.outs, self.ins).square().sum(2)
        kept = core.new_zeros(len(core) + 1, core.shape[1] + 1)
        kept[1:, 1:] = core.cumsum(0).cumsum(1)
        return (kept[-1, -1] - kept).clamp(min=0)

    def bases(self, first: int, second: int) -> tuple[Tensor, Tensor]:
        """Directions of the inputs ``[in, first]`` and of the outputs ``[out, second]``; a full rank keeps the channels as they are."""
        out, width, _ = self.white.shape
        ins = self.ins[:, :first] if first < width else torch.eye(width, dtype=torch.float64)
        outs = self.outs[:, :second] if second < out else torch.eye(out, dtype=torch.float64)
        if first < width and second < out:
            for _ in range(_ROUNDS):
                outs = _directions(torch.einsum("oip,ia->oap", self.white, ins))[:, :second]
                ins = _directions(torch.einsum("oip,ob->ibp", self.white, outs))[:, :first]
        return ins, outs


def _directions(tensor: Tensor) -> Tensor:
    """Of the first dimension, from the one along which the squares are most."""
    unfolded = tensor.flatten(1)
    found: Tensor = torch.linalg.eigh(unfolded @ unfolded.T)[1]
    return found.flip(1)
