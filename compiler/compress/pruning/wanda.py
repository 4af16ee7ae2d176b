"""Wanda (Sun et al., "A Simple and Effective Pruning Approach for Large Language Models", ICLR 2024): an element matters as much as its
magnitude times the norm of the activations that it meets, compared with the others of its output.
"""

from __future__ import annotations

from torch import Tensor

from effc.compiler.compress.inputs import Inputs
from effc.compiler.compress.pruning.masks import kept
from effc.compiler.ir.pattern import Pattern


def wanda(weight: Tensor, pattern: Pattern, sparsity: float, inputs: Inputs) -> Tensor:
    """``weight``, float32 ``[out, positions, channels]``, with ``sparsity`` of it zeros by ``pattern``. ``inputs``: what it meets; where
    all of that is 0, magnitudes alone decide.
    """
    norm = inputs.mean_square.sqrt()
    largest = norm.max()
    share = (
        norm / largest if largest > 0 else norm + 1
    )  # of the largest: magnitudes up to 1e30 times norms may be infinite
    return weight * kept(weight.abs() * share, pattern, sparsity, by_output=True)
