"""How much each unit of a group matters, so that units of all groups can be compared.

``"magnitude"``: the squared norms of its parts of all weights, as shares of each weight's. With a calibration, the error in the outputs of
the layers that read it, as a share of these outputs' energy: what its activation varies (FLAP: An et al., "Fluctuation-based Adaptive
Structured Pruning for Large Language Models", AAAI 2024), for the mean goes into the bias (`repair.py`); ``"sparsegpt"``: what is left of
that where the other channels make up for it, ``1 / [C⁻¹]`` (Hassibi and Stork 1992). Divided by the mean over the group, as DepGraph's
implementation does for ranking across layers.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from effc.compiler.compress.channels.groups import Axis, Group
from effc.compiler.compress.channels.repair import covariance
from effc.compiler.compress.inputs import Inputs
from effc.passes.sparsity import Method


def saliency(group: Group, weights: Mapping[str, Tensor], inputs: Mapping[str, Inputs], method: Method) -> Tensor:
    """Of each unit, float64 ``[units]``, their mean 1 (all 0 where nothing matters). ``weights``: by name; ``inputs``: what meets them."""
    found = torch.zeros(len(group.roots), dtype=torch.float64)
    for axis in group.axes:
        if method == "magnitude":
            shares = _shares(weights[axis.site.name].detach().movedim(axis.dim, 0).flatten(1).double().square().sum(1))
        elif axis.reads and axis.site.name in inputs:
            shares = _errors(axis, weights[axis.site.name], inputs[axis.site.name], method)
        else:
            continue
        mine = axis.units >= 0
        found.index_add_(0, axis.units[mine], shares[mine])
    return found / found.mean().clamp(min=torch.finfo(torch.float64).tiny)


def _shares(energies: Tensor) -> Tensor:
    return energies / energies.sum().clamp(min=torch.finfo(torch.float64).tiny)


def _errors(axis: Axis, weight: Tensor, inputs: Inputs, method: Method) -> Tensor:
    """Of the layer's output, where each channel alone goes, as shares of the output's energy."""
    taps = axis.site.by_channels(weight).double().transpose(0, 1).flatten(1)  # [channels, out * window]
    moment = inputs.moment.double()
    alone = covariance(inputs).diagonal()
    if method == "sparsegpt":
        alone = 1 / torch.linalg.inv(covariance(inputs, damped=True)).diagonal()
    energy = torch.einsum("io,ij,jo->", taps, moment, taps)
    return taps.square().sum(1) * alone / energy.clamp(min=torch.finfo(torch.float64).tiny)
