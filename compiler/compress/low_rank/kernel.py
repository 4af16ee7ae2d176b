"""``Kernel``: a convolution's weight, of one group, and how little is lost of it by what rank.

What is known of the activations is their mean, and the covariance of the channels at one position, times how positions of the window go
together, which is one matrix for its rows and one for its columns (`positions.py`). In coordinates that make all of these white the squared
error of the output is that of the weight, so what is best for the weight there is best for the output. Without activations the weight's own
coordinates serve; without windows among what calibration has kept, two positions are taken as uncorrelated, but for the mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from effc.compiler.compress.inputs import Inputs
from effc.compiler.compress.low_rank.positions import along, root_of
from effc.compiler.compress.low_rank.tucker import Tucker


@dataclass(frozen=True, eq=False)
class Kernel:
    """``weight``: float64 ``[out, in, rows, columns]``; further dimensions of the window are columns. ``root``: float64 ``[in, in]``, whose
    product with its transpose is the covariance of the input channels; ``mean``: theirs, ``[in]``; both None where they are not known.
    ``along``: likewise of the rows and of the columns of the window, ``[rows, rows]`` and ``[columns, columns]``.
    """

    weight: Tensor
    root: Tensor | None
    mean: Tensor | None
    along: tuple[Tensor, Tensor]

    @staticmethod
    def of(weight: Tensor, inputs: Inputs | None, first: int) -> Kernel:
        """``first``: of the channels of ``inputs``."""
        flat = weight.double().flatten(3) if weight.dim() > 3 else weight.double()[..., None]
        apart = (torch.eye(flat.shape[2], dtype=torch.float64), torch.eye(flat.shape[3], dtype=torch.float64))
        if inputs is None:
            return Kernel(flat, None, None, apart)
        taken = slice(first, first + weight.shape[1])
        mean = inputs.mean[taken].double()
        covariance = inputs.moment[taken, taken].double() - mean.outer(mean)
        if inputs.windows is not None and weight.dim() > 2:
            windows = inputs.windows[:, taken].reshape(-1, *flat.shape[1:]).double() - mean[:, None, None]
            apart = along(windows, covariance)
        return Kernel(flat, root_of(covariance), mean, apart)

    @cached_property
    def white(self) -> Tensor:
        """The weight in coordinates in which activations are white."""
        channels = self.weight if self.root is None else torch.einsum("oihw,ij->ojhw", self.weight, self.root)
        return torch.einsum("oihw,hr,wc->oirc", channels, *self.along)

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
        left, values, _ = torch.linalg.svd(_split(self.white), full_matrices=False)  # of columns as `along` has them
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
        left, of_columns = self._split[0][:, :rank], self.along[1]
        right = left.T @ _split(torch.einsum("oihw,wc->oihc", self.weight, of_columns))
        back = torch.linalg.solve(of_columns.T, left.reshape(out, columns, rank).transpose(0, 1).flatten(1))
        return [right.reshape(rank, width, rows), back.reshape(columns, out, rank).permute(1, 2, 0)]


def _split(weight: Tensor) -> Tensor:
    out, width, rows, columns = weight.shape
    return weight.permute(0, 3, 1, 2).reshape(out * columns, width * rows)
