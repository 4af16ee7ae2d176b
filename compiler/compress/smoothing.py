"""Smoothing: a factor for each channel that activations are divided by and weights multiplied with, found by the output's error."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from effc.compiler.compress.activations import held
from effc.compiler.compress.clipping import by_max
from effc.compiler.compress.inputs import Inputs, by_channel
from effc.compiler.compress.nearest import nearest
from effc.compiler.ir.quantization import Scheme

#: A channel's magnitude counts as at least this share of the largest one's, so that channels that calibration saw at 0 have a factor.
LEAST_SHARE = 1e-5


def least_error(tried: Iterable[Tensor], weights: Sequence[Tensor], scheme: Scheme, inputs: Inputs) -> Tensor:
    """Of ``tried``, factors ``[channels]``, and of ones, those with which rounded ``weights``, float32 ``[out, in]``, all meeting
    ``inputs``, give the least squared error of outputs.
    """
    best = torch.ones(inputs.channels)
    least = _output_error(best, weights, scheme, inputs)
    for factors in tried:
        error = _output_error(factors, weights, scheme, inputs)
        if error < least:
            best, least = factors, error
    return best


def centered(factors: Tensor) -> Tensor:
    """Times the number that makes their geometric mean 1: which number it is changes no rounding."""
    return factors / factors.log().mean().exp()


def per_element(factors: Tensor, size: int) -> Tensor:
    """Factors of channels ``[channels]``, for each of the ``size`` elements of a weight's row."""
    return factors.repeat_interleave(size // len(factors))


def _output_error(factors: Tensor, weights: Sequence[Tensor], scheme: Scheme, inputs: Inputs) -> float:
    if scheme.activations == "float":
        return sum(inputs.error(_stored(w, scheme, factors) / per_element(factors, w.shape[1]) - w) for w in weights)
    rows = held(inputs.sample / factors, scheme, inputs.over(factors))
    total = 0.0
    for weight in weights:
        stored = by_channel(_stored(weight, scheme, factors), inputs.channels)
        exact = by_channel(weight, inputs.channels)
        total += float((rows @ stored.T - inputs.sample @ exact.T).square().sum(dtype=torch.float64))
    return total


def _stored(weight: Tensor, scheme: Scheme, factors: Tensor) -> Tensor:
    scaled = weight * per_element(factors, weight.shape[1])
    return nearest(scaled, by_max(scaled, scheme)).stored()
