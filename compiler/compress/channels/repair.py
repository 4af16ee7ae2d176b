"""What makes up for channels that go, in a layer that read them."""

from __future__ import annotations

import torch
from torch import Tensor

from effc.compiler.compress.inputs import Inputs

#: Added to covariances, as a share of their mean: as in `compensation.py`.
_DAMPING = 0.01


def covariance(inputs: Inputs, damped: bool = False) -> Tensor:
    """Of the channels of an activation, float64 ``[channels, channels]``."""
    mean = inputs.mean.double()
    found = inputs.moment.double() - torch.outer(mean, mean)
    diagonal = found.diagonal().clamp(min=0)
    if damped:
        diagonal = diagonal + (float(diagonal.mean()) * _DAMPING or 1.0)
    return found.diagonal_scatter(diagonal)


def constant_for(inputs: Inputs, gone: Tensor) -> tuple[None, Tensor]:
    """The mean of the channels ``gone`` (bool ``[channels]``) in their place, which goes into the bias (FLAP's baseline compensation): of
    all constants the one with the least error.
    """
    return None, inputs.mean.double()[gone]


def regression_for(inputs: Inputs, gone: Tensor) -> tuple[Tensor, Tensor]:
    """The channels ``gone`` from those that stay, by least squares, ``x[gone] = mix @ x[stay] + constant`` (reconstruction as in He et al.,
    "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017): ``mix`` goes into the weights, ``constant`` into the bias.
    """
    moments, mean = covariance(inputs, damped=True), inputs.mean.double()
    mix = torch.linalg.solve(moments[~gone][:, ~gone], moments[~gone][:, gone]).T
    return mix, mean[gone] - mix @ mean[~gone]


def repaired(weight: Tensor, gone: Tensor, mix: Tensor | None, constant: Tensor) -> tuple[Tensor, Tensor]:
    """``weight``, ``[out, channels, window…]``, with what `constant_for` or `regression_for` say in the place of channels ``gone``: float64
    of that shape, and the bias ``[out]``. Of a convolution with padding the bias is that of windows inside of the image.
    """
    found = weight.detach().double()
    lost = found[:, gone]
    bias = lost.reshape(*lost.shape[:2], -1).sum(2) @ constant
    if mix is not None:
        found[:, ~gone] += torch.einsum("oc...,ck->ok...", lost, mix)
    return found, bias
