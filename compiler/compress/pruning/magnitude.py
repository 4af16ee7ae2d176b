"""Magnitude pruning (Han et al., "Learning both Weights and Connections for Efficient Neural Networks", NIPS 2015): the smallest elements
of a weight go; of blocks, those of the least sum of magnitudes (Mao et al., "Exploring the Granularity of Sparsity in
Convolutional Neural Networks", CVPR 2017 workshops).
"""

from __future__ import annotations

from torch import Tensor

from effc.compiler.compress.pruning.masks import kept
from effc.compiler.ir.pattern import Pattern


def magnitude(weight: Tensor, pattern: Pattern, sparsity: float) -> Tensor:
    """``weight``, float32 ``[out, positions, channels]``, with ``sparsity`` of it zeros by ``pattern``."""
    return weight * kept(weight.abs(), pattern, sparsity)
