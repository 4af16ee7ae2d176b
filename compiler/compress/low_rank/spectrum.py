"""What a weight's output, or the weight alone, consists of, direction by direction.

For outputs ``y = W x`` the best projection of rank ``r`` is that on the first ``r`` eigenvectors ``U`` of their covariance ``W C Wᵀ``, with
``C`` that of the activations; then ``W`` becomes ``U (Uᵀ W)``, and the part of the mean that it drops is a constant (Kaushal et al.,
"LORD: Low Rank Decomposition Of Monolingual Code LLMs For One-Shot Compression", 2023, after Chen et al., "DRONE", NeurIPS 2021). It is
the same product as that of the singular value decomposition of ``W C^½``, the whitened one (Wang et al., "SVD-LLM", ICLR 2025), for ``U``
are the left singular vectors of that. Without activations ``C`` is the identity, which gives the truncated decomposition of ``W`` (Eckart
and Young, 1936).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from effc.compiler.compress.inputs import Inputs
from effc.compiler.compress.low_rank.factors import Factors
from effc.compiler.compress.low_rank.ranks import Curve, Ranks

#: Directions of less than this share of the largest energy are rounding errors of float64.
_NOTHING = 1e-12


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Of ``weights``, float32 ``[out, in]`` each, that meet one activation and share a factor ``[rank, in]``, by relative squared errors.

    ``basis``: float32 ``[sum of out, directions]``, orthonormal columns; ``energy``: ``[directions]``, falling: what each adds to the
    squared error of the output of the weights, as a share of the output's squares, summed over the weights. ``sizes``: the root of these
    squares, of each weight. ``mean``: of the activations, ``[in]``; None where they are not known.
    """

    weights: Sequence[Tensor]
    sizes: Sequence[float]
    basis: Tensor
    energy: Tensor
    mean: Tensor | None

    @staticmethod
    def of(weights: Sequence[Tensor], inputs: Inputs | None) -> Spectrum:
        """Of float32 ``[out, in]`` each, not all zeros; ``inputs`` None: of the weights alone."""
        matrices = [w.double() for w in weights]
        if inputs is None:
            moment = mean = covariance = None
        else:
            moment, mean = inputs.moment.double(), inputs.mean.double()
            covariance = moment - mean.outer(mean)
        sizes = [float(((w if moment is None else w @ moment) * w).sum().clamp(min=0).sqrt()) or 1.0 for w in matrices]
        stacked = torch.cat([w / size for w, size in zip(matrices, sizes, strict=True)])
        return Spectrum(weights, sizes, *_directions(stacked, covariance), mean)

    def errors(self) -> Tensor:
        """The squared error left by rank 0, 1, …: ``[directions + 1]``."""
        tail = self.energy.flip(0).cumsum(0).flip(0)
        return torch.cat([tail, tail.new_zeros(1)])

    def curve(self) -> Curve:
        """Of all ranks."""
        out, width = len(self.basis), self.weights[0].shape[1]
        return Curve.of_products(self.errors(), out + width, out * width)

    def factors(self, ranks: Ranks, dtype: torch.dtype) -> list[Factors]:
        """Of each weight, all with one ``right``."""
        (rank,) = ranks.sizes
        basis, weights = self.basis[:, :rank].double(), [w.double() for w in self.weights]
        right = torch.zeros(basis.shape[1], weights[0].shape[1], dtype=torch.float64)
        lefts = basis.split([len(w) for w in weights])
        for left, weight, size in zip(lefts, weights, self.sizes, strict=True):
            right += left.T @ (weight / size)
        found, shared = [], right.to(dtype)
        for left, weight, size in zip(lefts, weights, self.sizes, strict=True):
            shift = None if self.mean is None else weight @ self.mean - size * (left @ (right @ self.mean))
            found.append(Factors((size * left).to(dtype), shared, None if shift is None else shift.to(dtype)))
        return found


def _directions(matrix: Tensor, covariance: Tensor | None) -> tuple[Tensor, Tensor]:
    """Eigenvectors and eigenvalues of ``matrix covariance matrixᵀ``, falling, without those that are zero; by the lesser side."""
    if len(matrix) <= matrix.shape[1]:
        spread = matrix if covariance is None else matrix @ covariance
        energy, basis = torch.linalg.eigh(spread @ matrix.T)
    else:
        white = matrix if covariance is None else matrix @ _root(covariance)
        energy, turned = torch.linalg.eigh(white.T @ white)
        basis = white @ turned / energy.clamp(min=torch.finfo(torch.float64).tiny).sqrt()
    energy, basis = energy.flip(0).clamp(min=0), basis.flip(1)
    kept = max(int((energy > _NOTHING * energy[0]).sum()), 1)
    return basis[:, :kept].float(), energy[:kept]


def _root(covariance: Tensor) -> Tensor:
    """A matrix whose product with its transpose is ``covariance``."""
    values, vectors = torch.linalg.eigh(covariance)
    root: Tensor = vectors * values.clamp(min=0).sqrt()
    return root
