"""How what meets a convolution's window goes together: neighbouring pixels are alike.

The covariance of a window ``[channels, rows, columns]`` is taken as a product of three, of its channels, rows and columns: those of the
rows and columns here are the nearest in the sum of squares to what calibration has seen, given that of the channels (Van Loan and
Pitsianis, "Approximation with Kronecker Products", 1993).
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Variances count as at least this share of the mean one, so that coordinates can be turned back.
_LEAST_VARIANCE = 1e-6


def along(windows: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Roots of the matrices ``[rows, rows]`` and ``[columns, columns]``, each of mean variance 1, for ``windows``, float64 ``[n, channels,
    rows, columns]`` less their mean, whose channels have this ``covariance``.
    """
    weighted = torch.einsum("nihw,ij->njhw", windows, covariance)
    rows = torch.einsum("nihw,nigw->hg", weighted, windows)
    columns = torch.einsum("nihw,nihv->wv", weighted, windows)
    return _unit_root(rows), _unit_root(columns)


def root_of(covariance: Tensor) -> Tensor:
    """A matrix, not singular, whose product with its transpose is ``covariance``, symmetric, but for variances near 0."""
    values, vectors = torch.linalg.eigh(covariance)
    floor = _LEAST_VARIANCE * float(values.clamp(min=0).mean()) or 1.0
    found: Tensor = vectors * values.clamp(min=floor).sqrt()
    return found


def _unit_root(matrix: Tensor) -> Tensor:
    scale = float(matrix.diagonal().mean())
    return root_of(matrix / scale) if scale > 0 else torch.eye(len(matrix), dtype=matrix.dtype)
