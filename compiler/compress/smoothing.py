"""Smoothing: a factor for each channel that activations are divided by and weights multiplied with, found by the output's error."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from effc.compiler.compress.activations import held
from effc.compiler.compress.clipping import by_max
from effc.compiler.compress.compensation import Compensation
from effc.compiler.compress.gptq import compensated
from effc.compiler.compress.inputs import Inputs, by_channel
from effc.compiler.compress.nearest import nearest
from effc.compiler.ir.quantization import Rounding, Scheme

#: A channel's magnitude counts as at least this share of the largest one's, so that channels that calibration saw at 0 have a factor.
LEAST_SHARE = 1e-5


def least_error(
    tried: Iterable[Tensor],
    weights: Sequence[Tensor],
    scheme: Scheme,
    inputs: Inputs,
    rounding: Rounding = "nearest",
    patience: int | None = None,
) -> Tensor:
    """Of ``tried``, factors ``[channels]``, and of ones, those with which ``weights``, float32 ``[out, in]``, all meeting ``inputs`` and
    rounded as ``rounding`` says, give the least squared error of outputs. After ``patience`` in a row that gain nothing none is tried.
    """
    best, since = torch.ones(inputs.channels), 0
    least = _output_error(best, weights, scheme, inputs, rounding)
    for factors in tried:
        error = _output_error(factors, weights, scheme, inputs, rounding)
        since += 1
        if error < least:
            best, least, since = factors, error, 0
        if since == patience:
            break
    return best


def centered(factors: Tensor) -> Tensor:
    """Times the number that makes their geometric mean 1: which number it is changes no rounding."""
    return factors / factors.log().mean().exp()


def per_element(factors: Tensor, size: int) -> Tensor:
    """Factors of channels ``[channels]``, for each of the ``size`` elements of a weight's row."""
    return factors.repeat_interleave(size // len(factors))


def _output_error(
    factors: Tensor, weights: Sequence[Tensor], scheme: Scheme, inputs: Inputs, rounding: Rounding
) -> float:
    smoothed = inputs.over(factors)
    compensation = Compensation.of(smoothed) if rounding == "gptq" else None

    def stored(weight: Tensor) -> Tensor:
        scaled = weight * per_element(factors, weight.shape[1])
        grid = by_max(scaled, scheme)
        found = nearest(scaled, grid) if compensation is None else compensated(scaled, grid, compensation)
        return found.stored()

    if scheme.activations == "float":
        return sum(inputs.error(stored(w) / per_element(factors, w.shape[1]) - w) for w in weights)
    rows, channels = held(inputs.sample / factors, scheme, smoothed), inputs.channels
    outputs = (rows @ by_channel(stored(w), channels).T - inputs.sample @ by_channel(w, channels).T for w in weights)
    return sum(float(difference.square().sum(dtype=torch.float64)) for difference in outputs)
