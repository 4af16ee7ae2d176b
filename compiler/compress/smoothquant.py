"""SmoothQuant (Xiao et al., ICML 2023, equation 4): outliers of activations, which lie in a few channels, move into the weights. The
strength is searched for by the output's error, as in SmoothQuant+ (Pan et al., 2023).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from effc.compiler.compress.inputs import Inputs, by_channel
from effc.compiler.compress.smoothing import LEAST_SHARE, centered, least_error
from effc.compiler.ir.quantization import Scheme

#: The strengths tried; the paper's is 0.5.
_STRENGTHS = tuple(i / 10 for i in range(1, 10))


def scales(weights: Sequence[Tensor], scheme: Scheme, inputs: Inputs) -> Tensor:
    """``max|x| ** a / max|w| ** (1 - a)`` for the ``a`` of 0.1, 0.2, … 0.9 with the least error of outputs, or ones where that is least:
    float32 ``[channels]``, geometric mean 1.

    ``weights``: float32 ``[out, in]``, all meeting ``inputs``; ``max|w|`` is over all of them. The error is taken with weights rounded to
    the nearest and activations as ``scheme`` holds them.
    """
    return least_error((factors(weights, inputs, a) for a in _STRENGTHS), weights, scheme, inputs)


def factors(weights: Sequence[Tensor], inputs: Inputs, strength: float) -> Tensor:
    """SmoothQuant's own, for one ``strength`` from 0 to 1."""
    of_weights = torch.stack([by_channel(w, inputs.channels).abs().amax(0) for w in weights]).amax(0)
    return centered(_positive(inputs.absmax) ** strength / _positive(of_weights) ** (1 - strength))


def _positive(magnitudes: Tensor) -> Tensor:
    largest = float(magnitudes.max())
    return magnitudes.clamp(min=largest * LEAST_SHARE) / largest if largest else torch.ones_like(magnitudes)
