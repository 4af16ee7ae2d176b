"""AWQ's scales (Lin et al., "AWQ: Activation-aware Weight Quantization for On-Device LLM Compression and Acceleration", MLSys 2024,
section 3.2): channels that large activations meet are scaled up before rounding, so that their weights lose less.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from effc.compiler.compress.inputs import Inputs
from effc.compiler.compress.smoothing import LEAST_SHARE, centered, least_error
from effc.compiler.ir.quantization import Rounding, Scheme

#: The exponents tried; the paper's grid has 20, and the error is flat between these.
_EXPONENTS = tuple(i / 10 for i in range(1, 10))


#: Compensated, the error has its minimum at small exponents and rises behind it: so many without a gain end the search.
_PATIENCE = 2


def scales(weights: Sequence[Tensor], scheme: Scheme, inputs: Inputs, rounding: Rounding = "nearest") -> Tensor:
    """``mean|x| ** a`` for the ``a`` in 0, 0.1, … 0.9 with the least error of outputs: float32 ``[channels]``, geometric mean 1.

    ``weights``: float32 ``[out, in]``, all meeting ``inputs``. The error is taken with weights rounded as ``rounding`` says, for the scales
    that suit plain rounding are too large for GPTQ, and activations as ``scheme`` holds them.
    """
    mean = inputs.sample.abs().mean(0)
    if not bool(mean.any()):
        return mean + 1
    magnitude = mean.clamp(min=float(mean.max()) * LEAST_SHARE)
    tried = (centered(magnitude**a) for a in _EXPONENTS)
    return least_error(tried, weights, scheme, inputs, rounding, None if rounding == "nearest" else _PATIENCE)
