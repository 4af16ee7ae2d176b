"""``Kernel``: a convolution's weight, of one group, and how little is lost of it by what rank.

What is known of the activations is their mean and covariance at one position; those at two positions of the window are taken as
uncorrelated, but for the mean. In coordinates that make the input channels white the squared error of the output is then that of the
weight, so what is best for the weight there is best for the output. Without activations the channels themselves are the coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from effc.compiler.compress.inputs import Inputs
from effc.compiler.compress.low_rank.tucker import Tucker

#: Variances count as at least this share of the mean one, so that coordinates can be turned back.
_LEAST_VARIANCE = 1e-6


@dataclass(frozen=True, eq=False)
class Kernel:
    """``weight``: float64 ``[out, in, rows, columns]``; further dimensions of the window are columns. ``root``: float64 ``[in, in]``, whose
    product with its transpose is the covariance of the input channels; ``mean``: theirs, ``[in]``; both None where they are not known.
    """

    weight: Tensor
    root: Tensor | None
    mean: Tensor | None

    @staticmethod
    def of(weight: Tensor, inputs: Inputs | None, first: int) -> Kernel:
        """``first``: of the channels of ``inputs``."""
        flat = weight.double().flatten(3) if weight.dim() > 3 else weight.double()[..., None]
        if inputs is None:
            return Kernel(flat, None, None)
        taken = slice(first, first + weight.shape[1])
        mean = inputs.mean[taken].double()
        values, vectors = torch.linalg.eigh(inputs.moment[taken, taken].double() - mean.outer(mean))
        floor = _LEAST_VARIANCE * float(values.clamp(min=0).mean()) or 1.0
        return Kernel(flat, vectors * values.clamp(min=floor).sqrt(), mean)

    @cached_property
    def white(self) -> Tensor:
        """The weight in coordinates in which activations are white."""
        return self.weight if self.root is None else torch.einsum("oihw,ij->ojhw", self.weight, self.root)

    @property
    def squares(self) -> float:
        """Of the output, at one position."""
        mean = self.mean_output(self.weight)
        return float(self.white.square().sum()) + (0.0 if mean is None else float(mean.square().sum()))

    def mean_output(self, weight: Tensor) -> Tensor | None:
        """Of ``weight``, of this shape, where its window lies within the image: ``[out]``."""
        return None if self.mean is None else weight.flatten(2).sum(2) @ self.mean

    # -- Tucker-2 ---------------------------------------------------------------------------------------------------
    @cached_property
    def _tucker(self) -> Tucker:
        return Tucker.of(self.white.flatten(2))

    def tucker_errors(self) -> Tensor:
        """Squared errors by the ranks ``[in, out]``, ``[in + 1, out + 1]``."""
        return self._tucker.errors()

    def tucker(self, first: int, second: int) -> list[Tensor]:
        """``[first, in]``, ``[second, first, positions]``, ``[out, second]``; without a factor of full rank."""
        out, width = self.weight.shape[:2]
        ins, outs = self._tucker.bases(first, second)
        core = torch.einsum("oip,ob->bip", self.weight.flatten(2), outs)
        behind = [outs] if second < out else []
        if first == width:
            return [core, *behind]
        there = ins if self.root is None else self.root @ ins
        back = ins.T if self.root is None else torch.linalg.solve(self.root.T, ins).T
        return [back, torch.einsum("bip,ia->bap", core, there), *behind]

    # -- one-way filters --------------------------------------------------------------------------------------------
    @cached_property
    def _split(self) -> tuple[Tensor, Tensor]:
        """Left singular vectors of the white weight as a matrix of (output, column) by (input, row), and its singular values."""
        left, values, _ = torch.linalg.svd(_split(self.white), full_matrices=False)
        return left, values

    def split_errors(self) -> Tensor:
        """Squared errors by the rank, ``[full + 1]``."""
        squares = self._split[1].square()
        return torch.cat([squares.flip(0).cumsum(0).flip(0), squares.new_zeros(1)])

    def split(self, rank: int) -> list[Tensor]:
        """``[rank, in, rows]`` and ``[out, rank, columns]`` (Jaderberg et al., "Speeding up Convolutional Neural Networks with Low Rank
        Expansions", BMVC 2014; the closed form is that of Tai et al., "Convolutional Neural Networks with Low-Rank Regularization", ICLR
        2016). Of a window of one position it is the product of two matrices.
        """
        out, width, rows, columns = self.weight.shape
        left = self._split[0][:, :rank]
        right = left.T @ _split(self.weight)
        return [right.reshape(rank, width, rows), left.reshape(out, columns, rank).transpose(1, 2)]


def _split(weight: Tensor) -> Tensor:
    out, width, rows, columns = weight.shape
    return weight.permute(0, 3, 1, 2).reshape(out * columns, width * rows)
