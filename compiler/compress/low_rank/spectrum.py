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
    """Of ``weights``, float32 ``[out, in]`` each, that meet one activation and share a factor ``[rank, in]``.

    ``scales``: float64 ``[out]`` of each: what an error of the output counts. ``basis``: float32 ``[sum of out, directions]``, orthonormal
    columns, of the scaled outputs; ``energy``: ``[directions]``, falling: what each adds to their squared error. ``mean``: of the
    activations, ``[in]``; None where they are not known.
    """

    weights: Sequence[Tensor]
    scales: Sequence[Tensor]
    basis: Tensor
    energy: Tensor
    mean: Tensor | None

    @staticmethod
    def of(weights: Sequence[Tensor], inputs: Inputs | None, scales: Sequence[Tensor] | None = None) -> Spectrum:
        """Of float32 ``[out, in]`` each, not all zeros; ``inputs`` None: of the weights alone. ``scales`` None: squared errors count as
        shares of the squares of a weight's outputs.
        """
        matrices = [w.double() for w in weights]
        if inputs is None:
            moment = mean = covariance = None
        else:
            moment, mean = inputs.moment.double(), inputs.mean.double()
            covariance = moment - mean.outer(mean)
        if scales is None:
            squares = [float(((w if moment is None else w @ moment) * w).sum()) for w in matrices]
            scales = [
                w.new_full((len(w),), max(s, 0) ** -0.5 if s > 0 else 1.0)
                for w, s in zip(matrices, squares, strict=True)
            ]
        stacked = torch.cat([w * scale[:, None] for w, scale in zip(matrices, scales, strict=True)])
        return Spectrum(weights, scales, *_directions(stacked, covariance), mean)

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
        weights = [w.double() for w in self.weights]
        middle = torch.cat(list(self.scales)).mean()  # so that both factors are of the weights' size
        scales = [scale[:, None] / middle for scale in self.scales]
        lefts = self.basis[:, :rank].double().split([len(w) for w in weights])
        each = list(zip(lefts, weights, scales, strict=True))
        right = torch.stack([left.T @ (weight * scale) for left, weight, scale in each]).sum(0)
        found, shared = [], right.to(dtype)
        for left, weight, scale in each:
            unscaled = left / scale
            shift = None if self.mean is None else weight @ self.mean - unscaled @ (right @ self.mean)
            found.append(Factors(unscaled.to(dtype), shared, None if shift is None else shift.to(dtype)))
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
